-- reject: move an ident that nobody can run, because its class or its record cannot be had, from the waiting list to the
-- errors.
-- KEYS: models
-- ARGV: namespace queue ident record
-- `record` is its Error, or ''.
-- Replies:
--   OK error_pk length keep      length and keep as for `finish`, of the list `errors`
--   GONE                       the ident waits there no longer
--   TAKEN field                a unique value of the Error belongs to another; nothing was written
local queue, ident = ARGV[2], ARGV[3]
local record = ARGV[4] ~= '' and cjson.decode(ARGV[4])
allow_when_full(ARGV[1])
local conflict = record and taken(record)
if conflict then return {'TAKEN', conflict} end
if not redis.call('LPOS', queue .. ':waiting', ident) then return {'GONE'} end
local length, keep = push_history(queue, 'errors', ident)
redis.call('LREM', queue .. ':waiting', 1, ident)
return {'OK', record and create(record) or '', tostring(length), keep}
