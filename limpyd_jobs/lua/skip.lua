-- skip: let go of a job that is not to be run, or not any more: it is no longer queued.
-- KEYS: models
-- ARGV: namespace ident token worker
-- Replies:
--   OK changed...
--   ALREADY                    the call was repeated
--   LOST                       another worker runs the job, or it is queued again; nothing was written
--   GONE                       the record does not exist; the lease is dropped
local namespace, ident, token, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
allow_when_full(namespace)
local state = guard(namespace, ident, token, worker, '/skip')
if state ~= 'OK' then return {state} end
local repr, pk = split_ident(ident)
local recipe = recipe_of(namespace, repr)
local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued', 'follow_up')
local status = values[1]
if token ~= '' then
  drop_lease(namespace, ident, token)
  mark_done(namespace, token, worker, '/skip')
elseif status == 'r' or status == 'w' or status == 'd' or status == 'b' then
  return {'LOST'}  -- it runs elsewhere, waits for other jobs, or was put in a queue again
end
if not status and redis.call('EXISTS', recipe.key .. ':' .. pk .. ':hash') == 0 then return {'GONE'} end
write_fields(recipe, pk, {'queued'}, {false})
if values[2] and status == 'c' then count_job(namespace, recipe, pk, 'c') end
if values[2] then note_end(namespace, recipe, pk, status, values[3]) end  -- else it was told by then
return {'OK', unpack(changed)}
