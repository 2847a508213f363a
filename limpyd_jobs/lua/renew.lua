-- renew: prolong the leases of the jobs that a process runs.
-- KEYS: models
-- ARGV: namespace asks_canceled idents_tokens_and_seconds...
-- With `asks_canceled` ('1') it is told which of them are CANCELED by now, so that they can be interrupted.
-- Replies:
--   OK lost_count lost... canceled...      the idents that belong to somebody else by now; of the others, the canceled ones
local namespace, asks_canceled, current = ARGV[1], ARGV[2] == '1', now()
local lost, canceled = {}, {}
allow_when_full(namespace)

local function is_canceled(ident)
  local repr, pk = split_ident(ident)
  local recipe = repr and recipe_of(namespace, repr)
  return recipe and redis.pcall('HGET', recipe.key .. ':' .. pk .. ':hash', 'status') == 'c'
end

for position = 3, #ARGV, 3 do
  local ident, token = ARGV[position], ARGV[position + 1]
  if redis.call('HGET', namespace .. ':claims', ident) == token then
    redis.call('ZADD', namespace .. ':leases', score(current + tonumber(ARGV[position + 2])), ident)
    if asks_canceled and is_canceled(ident) then canceled[#canceled + 1] = ident end
  else
    lost[#lost + 1] = ident
  end
end

local reply = {'OK', tostring(#lost)}
for _, list in ipairs({lost, canceled}) do
  for _, item in ipairs(list) do reply[#reply + 1] = item end
end
return reply
