-- release: give jobs back to the head of their queues, because their worker has to end at once; their try is not counted.
-- KEYS: models
-- ARGV: namespace queue_model tokens...
-- What cannot be given back (its queue was deleted, its class is not in the registry) keeps its lease, until that lapses.
-- Replies:
--   OK count idents... changed...      those that were given back, at most one for each token
local namespace, queue_model = ARGV[1], ARGV[2]
local claims = namespace .. ':claims'
local released = {}
allow_when_full(namespace)

for position = 3, #ARGV do
  local ident = redis.call('HGET', claims, ARGV[position])
  local repr, pk = split_ident(ident or '')
  local recipe = repr and recipe_of(namespace, repr)
  if recipe then
    local values = redis.pcall('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'tries')
    local was_running, tries = values[1] == 'r', count_of(values[2])
    local could_decide, done = pcall(give_back, namespace, queue_model, recipe, pk, ident, ARGV[position])
    if could_decide and done == 'OK' then
      if was_running and tries > 0 then write_fields(recipe, pk, {'tries'}, {tries > 1 and tostring(tries - 1)}) end
      released[#released + 1] = ident
    end
  end
end

local reply = {'OK', tostring(#released)}
for _, list in ipairs({released, changed}) do
  for _, item in ipairs(list) do reply[#reply + 1] = item end
end
return reply
