-- update: note how far a job has come, and tell whoever listens to it.
-- KEYS: models
-- ARGV: namespace ident key token progress
-- `key` is the one of its class, `jobs:job`. `progress` is JSON: what it holds replaces what was said before, the rest of
-- that stays. With a token, that of whoever runs the job, or has run it: only as long as the lease is held.
-- Replies:
--   OK
--   LOST                       the job is no longer the caller's; nothing was written
--   GONE                       the record does not exist
local namespace, ident, key, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local _, pk = split_ident(ident)
local hash = key .. ':' .. pk .. ':hash'
local values = redis.call('HMGET', hash, 'status', 'progress')
if not values[1] and redis.call('EXISTS', hash) == 0 then return {'GONE'} end
if token ~= '' and redis.call('HGET', namespace .. ':claims', ident) ~= token then return {'LOST'} end
allow_when_full(namespace)
local is_json, progress = pcall(cjson.decode, values[2] or '{}')
if not is_json or type(progress) ~= 'table' then progress = {} end
for name, value in pairs(cjson.decode(ARGV[5])) do progress[name] = value end
local text = cjson.encode(progress)
redis.call('HSET', hash, 'progress', text)
publish({key = key}, pk, 'update ' .. text)
return {'OK'}
