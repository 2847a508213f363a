-- begin: note that a job that was claimed ahead runs now.
-- KEYS: models
-- ARGV: namespace ident token worker start
-- Replies:
--   OK changed...              it is RUNNING, start and tries are written; or it was already: a repeated call
--   LOST                       the job is no longer the caller's; nothing was written
--   CHANGED status             the job is canceled or delayed, or has ended; nothing was written
--   GONE                       the record does not exist; the lease stays until the end
local namespace, ident, token = ARGV[1], ARGV[2], ARGV[3]
allow_when_full(namespace)
if redis.call('HGET', namespace .. ':claims', ident) ~= token then return {'LOST'} end
local repr, pk = split_ident(ident)
local recipe = recipe_of(namespace, repr)
local hash = recipe.key .. ':' .. pk .. ':hash'
local values = redis.call('HMGET', hash, 'status', 'tries', 'follow_up', 'queue_key', 'added', 'waiting_since', recipe.task or 'status')
if not values[1] and redis.call('EXISTS', hash) == 0 then return {'GONE'} end
if values[1] == 'r' then return {'OK'} end
if values[1] ~= 'w' then return {'CHANGED', values[1] or ''} end
write_fields(recipe, pk, {'status', 'tries', 'start'}, {'r', tostring(count_of(values[2]) + 1), ARGV[5]})
tally_time('w', task_and_queue(recipe, values[7], queue_name(values[4])), waits_since(recipe, values[5], values[6]), ARGV[5])
write_numbers(namespace)
if values[3] then note_begin(recipe, pk, values[3]) end
return {'OK', unpack(changed)}
