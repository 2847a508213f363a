-- retry: a job that failed runs again, in the hands of the process that it is leased to.
-- KEYS: models
-- ARGV: namespace ident token next_token start queue_name
-- The lease goes on under `next_token`: else the end of this try would pass for that of the one before, sent again.
-- Replies:
--   OK changed...              it is RUNNING, start and tries are written; or this call was made before
--   LOST                       the job is no longer the caller's; nothing was written
--   CHANGED status             it was canceled meanwhile, or another status was written by hand; nothing was written
--   GONE                       the record does not exist; the lease is dropped
local namespace, ident, token, next_token, start = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local claims = namespace .. ':claims'
allow_when_full(namespace)
local holder = redis.call('HGET', claims, ident)
if holder == next_token then return {'OK'} end
if holder ~= token then return {'LOST'} end
local repr, pk = split_ident(ident)
local recipe = recipe_of(namespace, repr)
local hash = recipe.key .. ':' .. pk .. ':hash'
local values = redis.call('HMGET', hash, 'status', 'tries', recipe.task or 'status')
if not values[1] and redis.call('EXISTS', hash) == 0 then
  drop_lease(namespace, ident, token)
  return {'GONE'}
end
if values[1] ~= 'e' then return {'CHANGED', values[1] or ''} end
write_fields(recipe, pk, {'status', 'tries', 'start', 'end'}, {'r', next_count(values[2]), start, false})
local of = task_and_queue(recipe, values[3], ARGV[6])
tally('q', of)
tally_time('w', of, false)
write_numbers(namespace)
redis.call('HDEL', claims, token)
redis.call('HSET', claims, ident, next_token, next_token, ident)
return {'OK', unpack(changed)}
