-- recover: give the jobs whose lease lapsed back to the head of their waiting lists, at most 100 a call.
-- KEYS: models
-- ARGV: namespace queue_model end
-- A job that had failed and was about to be requeued waits again, without its `start` and `end`; one that was about to
-- be delayed is delayed; a canceled one is let go; one whose queue was deleted ends in ERROR. What cannot be decided now
-- (a class that the registry lost, something else under the keys of the queue) keeps its lease for another minute.
-- Jobs of version 2's workers have no lease: they are never touched.
-- Replies:
--   OK recovered_count homeless_count unknown_count idents... changed...
--              recovered: they wait or are delayed; homeless: they are in ERROR; unknown: register their classes
local namespace, queue_model = ARGV[1], ARGV[2]
local leases, claims = namespace .. ':leases', namespace .. ':claims'
local current = now()
local recovered, homeless, unknown = {}, {}, {}

local function postpone(ident)
  redis.call('ZADD', leases, score(current + 60), ident)
end

local function delay(recipe, pk, name, owner, queue, ident, delayed_until)
  local due = parse_date(delayed_until) or current + 60
  if due > current then
    write_fields(recipe, pk, {'delayed_until'}, {format_date(due)})
    enter(namespace, owner, name, queue, ident, due)
  else
    write_fields(recipe, pk, {'status', 'delayed_until'}, {'w', false})
    enter(namespace, owner, name, queue, ident, nil, true)
  end
end

-- What becomes of a job nobody runs any more; its lease goes when that is written.
local function give_back(ident, recipe, pk)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued', 'queue_key', 'delayed_until')
  local status, queue = values[1], values[3]
  local is_ours = queue and string.sub(queue, 1, #queue_model + 1) == queue_model .. ':'
  local owner = is_ours and queue_model or string.match(queue or '', '^(.*):[^:]*$')
  local name = queue and redis.call('HGET', queue .. ':hash', 'name')
  local is_to_run = status == 'r' or status == 'w' or status == 'd' or (status == 'e' and values[2])
  if is_to_run and name and is_broken(queue) then return postpone(ident) end
  drop_lease(namespace, ident, redis.call('HGET', claims, ident) or '')
  if is_to_run and not name then
    write_fields(recipe, pk, {'status', 'end', 'queued'}, {'e', ARGV[3], false})
    homeless[#homeless + 1] = ident
  elseif status == 'd' then
    delay(recipe, pk, name, owner, queue, ident, values[4])
    recovered[#recovered + 1] = ident
  elseif is_to_run then
    write_fields(recipe, pk, {'status', 'start', 'end'}, {'w', false, false})
    enter(namespace, owner, name, queue, ident, nil, true)
    recovered[#recovered + 1] = ident
  elseif status == 'c' then
    write_fields(recipe, pk, {'queued'}, {false})
  end
end

for _, ident in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', score(current), 'LIMIT', 0, 100)) do
  local repr, pk = split_ident(ident)
  local recipe = repr and recipe_of(namespace, repr)
  if recipe then
    give_back(ident, recipe, pk)
  else
    postpone(ident)
    unknown[#unknown + 1] = ident
  end
end

local reply = {'OK', tostring(#recovered), tostring(#homeless), tostring(#unknown)}
for _, list in ipairs({recovered, homeless, unknown, changed}) do
  for _, item in ipairs(list) do reply[#reply + 1] = item end
end
return reply
