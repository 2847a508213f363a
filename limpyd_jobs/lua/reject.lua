-- reject: move an ident that nobody can run, because its class or its record cannot be had, from the waiting list to the
-- errors.
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
if not redis.call('LPOS', queue .. ':waiting', ident) then return {'GONE'} end
local error_pk = record and create(record) or ''
push_history(queue, 'errors', ident)
redis.call('LREM', queue .. ':waiting', 1, ident)
return {'OK', error_pk}
