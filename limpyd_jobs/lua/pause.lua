-- pause: have no worker take jobs of the queues of a name any more, whatever their priority.
-- KEYS: models
-- ARGV: namespace queue_model name reason by
-- One that is paused already keeps its `since`. The name need not have any queue yet.
-- Replies:
--   OK note                    JSON: since when (UTC), why and by whom
--   BROKEN key                 something of another type is under this key; nothing was written
-- Invariant: a name is marked in what is ready if it is noted in `paused`, and only then: claims look at the mark alone.
local namespace, name = ARGV[1], ARGV[3]
local paused, ready = namespace .. ':paused', side(namespace, 'ready', ARGV[2], name)
local field = string.sub(ARGV[2], #namespace + 2) .. ':' .. name
allow_when_full(namespace)

local former = redis.pcall('HGET', paused, field)
if type(former) == 'table' then return {'BROKEN', paused} end
if type(redis.pcall('ZCARD', ready)) == 'table' then return {'BROKEN', ready} end
local is_json, known = pcall(cjson.decode, former or '{}')
local since = is_json and type(known) == 'table' and known.since or format_date(math.floor(now()))
local note = cjson.encode({since = since, reason = ARGV[4], by = ARGV[5]})
redis.call('HSET', paused, field, note)
redis.call('ZADD', ready, '+inf', PAUSED)
return {'OK', note}
