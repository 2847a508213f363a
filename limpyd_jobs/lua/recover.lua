-- recover: give the jobs whose lease lapsed back to the head of their waiting lists, at most 100 a call.
-- KEYS: models
-- ARGV: namespace queue_model
-- A job that had failed and was about to be requeued waits again, without its `start` and `end`; one that was about to
-- be delayed is delayed; a canceled one is let go. Jobs of version 2's workers have no lease: they are never touched.
-- Replies:
--   OK count changed_count changed... idents...
local namespace, queue_model = ARGV[1], ARGV[2]
local claims = namespace .. ':claims'
local current = now()
local recovered = {}

for _, ident in ipairs(redis.call('ZRANGEBYSCORE', namespace .. ':leases', '-inf', score(current), 'LIMIT', 0, 100)) do
  local token = redis.call('HGET', claims, ident)
  redis.call('ZREM', namespace .. ':leases', ident)
  redis.call('HDEL', claims, ident, token or '')
  local repr, pk = split_ident(ident)
  local recipe = repr and recipe_of(namespace, repr)
  local hash = recipe and recipe.key .. ':' .. pk .. ':hash'
  local values = recipe and redis.call('HMGET', hash, 'status', 'queued', 'queue_key', 'delayed_until') or {}
  local status, queue = values[1], values[3]
  local name = queue and redis.call('HGET', queue .. ':hash', 'name')
  local is_ours = queue and string.sub(queue, 1, #queue_model + 1) == queue_model .. ':'
  local owner = is_ours and queue_model or string.match(queue or '', '^(.*):[^:]*$')
  if name and (status == 'r' or status == 'w' or (status == 'e' and values[2])) then
    write_fields(recipe, pk, {'status', 'start', 'end'}, {'w', false, false})
    enter(namespace, owner, name, queue, ident, nil, true)
    recovered[#recovered + 1] = ident
  elseif name and status == 'd' then
    local due = parse_date(values[4]) or current + 60
    if due <= current then
      due = nil
      write_fields(recipe, pk, {'status', 'delayed_until'}, {'w', false})
    else
      write_fields(recipe, pk, {'delayed_until'}, {format_date(due)})
    end
    enter(namespace, owner, name, queue, ident, due, true)
    recovered[#recovered + 1] = ident
  elseif status == 'c' then
    write_fields(recipe, pk, {'queued'}, {false})
  end
end

local reply = {'OK', tostring(#recovered), tostring(#changed)}
for _, item in ipairs(changed) do reply[#reply + 1] = item end
for _, ident in ipairs(recovered) do reply[#reply + 1] = ident end
return reply
