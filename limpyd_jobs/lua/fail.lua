-- fail: record the error of a job, with its Error record.
-- KEYS: models
-- ARGV: namespace ident token worker queue end requeue_times record
-- `record` is '' when errors are not saved. A job that has run at most `requeue_times` times and has no
-- `cancel_on_error`, and was not canceled meanwhile, is to be requeued: its lease stays, so that it is safe until it is.
-- '' as `requeue_times`: never. A canceled job is in ERROR, without its `cancel_reason`. The priority in the reply is the queue's.
-- Replies:
--   OK error_pk to_be_requeued priority length keep changed...
--                              error_pk is '' without a record; length and keep as for `finish`, of the list `errors`
--   ALREADY '' to_be_requeued priority      this end is recorded: the call was repeated
--   LOST                       the job is no longer the caller's; nothing was written
--   GONE                       the record of the job does not exist; the lease is dropped
--   TAKEN field                a unique value of the Error belongs to another; nothing was written
local namespace, ident, token, worker, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local requeue_times = tonumber(ARGV[7])
allow_when_full(namespace)
local state = guard(namespace, ident, token, worker, '/fail')
if state == 'LOST' then return {state} end
local repr, pk = split_ident(ident)
local recipe = recipe_of(namespace, repr)
local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'tries', 'cancel_on_error', 'follow_up', 'run_options',
  'start', recipe.task or 'status')
local found = redis.pcall('HGET', queue .. ':hash', 'priority')
local queue_priority = type(found) == 'string' and found or '0'
if not values[1] and redis.call('EXISTS', recipe.key .. ':' .. pk .. ':hash') == 0 then
  drop_lease(namespace, ident, token)
  return {'GONE'}
end
if state == 'ALREADY' then
  local is_held = redis.call('HGET', namespace .. ':claims', ident) == token
  return {state, '', is_held and '1' or '0', queue_priority}
end
local record = ARGV[8] ~= '' and cjson.decode(ARGV[8])
local conflict = record and taken(record)
if conflict then return {'TAKEN', conflict} end

-- first: when it cannot be written, something else being under a key of its model, the job ends all the same
local is_saved, error_pk = pcall(function() return record and create(record) or '' end)
if not is_saved then error_pk = '' end
local may_again = requeue_times and count_of(values[2]) <= requeue_times
local to_be_requeued = may_again and (values[3] or '') == '' and values[1] ~= 'c'
if to_be_requeued then
  write_fields(recipe, pk, {'status', 'end'}, {'e', ARGV[6]})
else
  write_fields(recipe, pk, {'status', 'end', 'queued', 'cancel_reason'}, {'e', ARGV[6], false, false})
  drop_lease(namespace, ident, token)
end
local length, keep, name = push_history(queue, 'errors', nil, ident)
tally_time('e', task_and_queue(recipe, values[7], name), values[6], ARGV[6])
write_numbers(namespace)
mark_done(namespace, token, worker, '/fail')
if not to_be_requeued then note_end(namespace, recipe, pk, 'e', values[4], values[5]) end
return {'OK', error_pk, to_be_requeued and '1' or '0', queue_priority, tostring(length), keep, unpack(changed)}
