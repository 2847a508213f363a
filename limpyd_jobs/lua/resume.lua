-- resume: have workers take the jobs of the queues of a name again, those that wait at once.
-- KEYS: models
-- ARGV: namespace queue_model name
-- Replies:
--   OK was_paused              '1' or '0'
--   BROKEN key                 something of another type is under this key; nothing was written
local namespace, queue_model, name = ARGV[1], ARGV[2], ARGV[3]
local paused, ready = namespace .. ':paused', side(namespace, 'ready', queue_model, name)
allow_when_full(namespace)

if type(redis.pcall('HLEN', paused)) == 'table' then return {'BROKEN', paused} end
if type(redis.pcall('ZCARD', ready)) == 'table' then return {'BROKEN', ready} end
local noted = redis.call('HDEL', paused, string.sub(queue_model, #namespace + 2) .. ':' .. name)
local marked = redis.call('ZREM', ready, PAUSED)
if marked == 1 and redis.call('EXISTS', ready) == 1 then ring(namespace, queue_model, name, MAX_RINGS) end  -- who finds nothing clears them
return {'OK', noted + marked > 0 and '1' or '0'}
