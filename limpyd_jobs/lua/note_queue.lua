-- note_queue: write down whether jobs wait in a queue, and when its first delayed one is due, where that is not noted so.
-- KEYS: models
-- ARGV: namespace queue_model queue_pk is_meant
-- Replies:
--   FINE                       it is noted so, or the queue is gone; nothing was written
--   WRONG                      it is not; without `is_meant` ('1') nothing was written, else it is now
local namespace, model, pk, is_meant = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local queue = model .. ':' .. pk
local name, priority = unpack(redis.call('HMGET', queue .. ':hash', 'name', 'priority'))
if not name then return {'FINE'} end
local ready = redis.call('ZSCORE', side(namespace, 'ready', model, name), pk)
local due = redis.call('ZSCORE', side(namespace, 'due', model, name), pk)
local first = redis.call('ZRANGE', queue .. ':delayed', 0, 0, 'WITHSCORES')[2]
local waits = redis.call('LLEN', queue .. ':waiting') > 0
local is_late = waits and (not ready or tonumber(ready) ~= (tonumber(priority or 0) or 0))
local is_later = first and (not due or tonumber(due) > tonumber(first) + 0.001)
if not is_late and not is_later then return {'FINE'} end
if is_meant then
  if is_late then note_ready(namespace, model, name, queue) end
  if is_later then note_due(namespace, model, name, queue) end
  ring(namespace, model, name)
end
return {'WRONG'}
