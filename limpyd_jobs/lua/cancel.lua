-- cancel: see to it that a job is not run: at once if it waits, is delayed or blocked, else by asking the worker that has it.
-- KEYS: models
-- ARGV: namespace repr recipe pk queue_recipe reason seen
-- `seen`: as for `requeue`; one that is CANCELED by now may be so by this very call.
-- Replies:
--   CANCELED changed...        it is in no place any more; or it was canceled before, and nothing was written
--   REQUESTED changed...       a process has it (it runs, was claimed ahead, is about to be placed or requeued): its status is
--                              CANCELED, and that process comes to it; RUNNING without a lease, too: for a worker of version 2
--   CHANGED status             the job is not as it was read; nothing was written
--   BROKEN key                 something of another type is under this key of an index; nothing was written
--   ENDED                      it is in SUCCESS or ERROR; nothing was written
--   GONE                       the record does not exist
local namespace, pk, ident, reason = ARGV[1], ARGV[4], ARGV[2] .. ':' .. ARGV[4], ARGV[6]
local recipe, queue_recipe = cjson.decode(ARGV[3]), cjson.decode(ARGV[5])
if redis.call('SISMEMBER', recipe.key .. ':collection', pk) == 0 then return {'GONE'} end
allow_when_full(namespace)
local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued', 'follow_up')
local status, is_leased = values[1], redis.call('HEXISTS', namespace .. ':claims', ident) == 1
if status ~= 'c' and not is_as_read(recipe.key .. ':' .. pk .. ':hash', ARGV[7]) then return {'CHANGED', status or ''} end
if status == 's' or (status == 'e' and not is_leased) then return {'ENDED'} end
local broken = broken_index(recipe, 'status', status, 'c') or broken_index(recipe, 'queued', '1')
if broken then return {'BROKEN', broken} end
if is_leased or status == 'r' then
  if status ~= 'c' then write_fields(recipe, pk, {'status', 'cancel_reason'}, {'c', reason}) end
  return {'REQUESTED', unpack(changed)}
end
if status == 'c' and not values[2] then return {'CANCELED'} end
local was_in_queue = status ~= 'b' and leave_anywhere(namespace, queue_recipe, recipe, pk, ident, ARGV[7] ~= '')
if status == 'c' and not was_in_queue then return {'REQUESTED'} end  -- version 2's worker, or one that vanished, had it
write_fields(recipe, pk, {'status', 'queued', 'cancel_reason'}, {'c', false, reason})
if status == 'b' then redis.call('DEL', recipe.key .. ':' .. pk .. ':waits_for') end
count_job(namespace, recipe, pk, 'c')
note_end(namespace, recipe, pk, 'c', values[3])
return {'CANCELED', unpack(changed)}
