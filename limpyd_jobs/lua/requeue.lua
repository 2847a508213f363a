-- requeue: put a job that failed back in a queue, now or later.
-- KEYS: models
-- ARGV: namespace repr recipe pk queue_recipe queue_record queue_name priority delay_kind delay_value token hold lease_seconds worker seen
-- As `move`, from ERROR only; `start`, `end` and `recoveries` are cleared, and an expiry that is past unless the worker that ran it does this. A call that is repeated gets the first reply.
-- `seen`: '' when nobody asks, else the status, '=' and the `end` of the job as it was read: another person may have requeued it since.
-- Replies:
--   OK queue priority delayed_until changed...      delayed_until is '' when it waits
--   NO_QUEUE priority          the job keeps its priority, and this queue does not exist: create it, ask again
--   NOT_IN_STATUS status       the job is not in ERROR; nothing was written. One that was canceled after the caller recorded its error
--                              is let go: no longer queued, no longer leased
--   CHANGED status             the job is not as it was read; nothing was written
--   RUNNING                    another worker has not done with the job; nothing was written
--   LOST                       the caller's lease on the job is over: another worker has run it since; nothing was written
--   QUEUED pk                  another job with this identifier is queued; nothing was written
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   GONE                       the record does not exist
local namespace, repr, pk, name = ARGV[1], ARGV[2], ARGV[4], ARGV[7]
local token, hold, lease_seconds, worker = ARGV[11], ARGV[12], tonumber(ARGV[13]), ARGV[14]
local queue_recipe, ident = cjson.decode(ARGV[5]), repr .. ':' .. pk
local recipe = cjson.decode(ARGV[3])
local due = due_time(ARGV[9], ARGV[10])

allow_when_full(namespace)
if redis.call('SISMEMBER', recipe.key .. ':collection', pk) == 0 then return {'GONE'} end
local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'priority', 'queued', 'follow_up')
local holder = redis.call('HGET', namespace .. ':claims', ident)
local is_repeated = hold ~= '' and holder == hold
if redis.call('GET', namespace .. ':done:' .. worker) == token .. ident .. '/requeue' then
  local written = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'queue_key', 'priority', 'delayed_until')
  return {'OK', written[1] or '', written[2] or '0', written[3] or ''}
end
if not is_repeated and not is_as_read(recipe.key .. ':' .. pk .. ':hash', ARGV[15]) then return {'CHANGED', values[1] or ''} end
if values[1] == 'c' and holder and holder == token then  -- canceled between its error and this
  write_fields(recipe, pk, {'queued'}, {false})
  drop_lease(namespace, ident, token)
  count_job(namespace, recipe, pk, 'c')
  note_end(namespace, recipe, pk, 'c', values[4])
end
if token ~= '' and holder ~= token and not is_repeated and values[1] ~= 'c' then return {'LOST'} end
if values[1] ~= 'e' and not is_repeated then return {'NOT_IN_STATUS', values[1] or ''} end
if holder and holder ~= token and not is_repeated then return {'RUNNING'} end
local priority = ARGV[8] ~= '' and ARGV[8] or values[2] or '0'
local queue = find_queue(namespace, queue_recipe, name, priority)
local queue_record = cjson.decode(ARGV[6])
if not queue and not unusable and (ARGV[8] == '' or queue_record == cjson.null) then return {'NO_QUEUE', priority} end
local broken = broken_key(namespace, queue_recipe.key, name, queue or queue_recipe.key .. ':0')
if broken then return {'BROKEN', broken} end

local rival = rival_of(namespace, queue_recipe, recipe, pk)
if rival then return {'QUEUED', rival} end
queue = queue or remember_queue(namespace, queue_recipe, name, priority, create(queue_record))
register(namespace, repr, ARGV[3])
if holder then
  drop_lease(namespace, ident, holder)
elseif values[3] then
  leave_anywhere(namespace, queue_recipe, recipe, pk, ident)  -- somebody wrote ERROR on a job that waits
end
write_fields(recipe, pk, {'status', 'queued', 'priority', 'delayed_until', 'queue_key', 'start', 'end', 'recoveries',
  'cancel_reason', 'progress'},
  {due and 'd' or 'w', '1', priority, due and format_date(due) or false, queue, false, false, false, false, false})
if not due then note_waiting(recipe, pk) end
count_job(namespace, recipe, pk, 'q')
if not holder then forget_past_expiry(recipe, pk) end
if hold ~= '' then
  take_lease(namespace, ident, hold, now() + lease_seconds)
else
  enter(namespace, queue_recipe.key, name, queue, ident, due, false)
end
mark_done(namespace, token .. ident, worker, '/requeue')
return {'OK', queue, priority, due and format_date(due) or '', unpack(changed)}
