-- create: write a whole new record, with all its indexes.
-- KEYS: collection
-- ARGV: record
-- Replies:
--   NEW pk
--   TAKEN field                the primary key or a unique value belongs to another record
local record = cjson.decode(ARGV[1])
local conflict = taken(record)
if conflict then return {'TAKEN', conflict} end
return {'NEW', create(record)}
