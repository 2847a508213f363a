-- reject: move an ident that nobody can run, because its class cannot be had, from the waiting list to the errors.
-- KEYS: models
-- ARGV: queue ident record
-- `record` is its Error, or ''.
-- Replies:
--   OK error_pk
--   GONE                       the ident waits there no longer
--   TAKEN field                a unique value of the Error belongs to another; nothing was written
local queue, ident = ARGV[1], ARGV[2]
local record = ARGV[3] ~= '' and cjson.decode(ARGV[3])
local conflict = record and taken(record)
if conflict then return {'TAKEN', conflict} end
if redis.call('LREM', queue .. ':waiting', 1, ident) == 0 then return {'GONE'} end
redis.call('RPUSH', queue .. ':errors', ident)
return {'OK', record and create(record) or ''}
