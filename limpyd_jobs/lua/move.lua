-- move: put a job in a queue, now or later, from wherever it is.
-- KEYS: models
-- ARGV: namespace repr recipe pk queue_recipe queue_record queue_name priority delay_kind delay_value token hold lease_seconds prepend seen
-- An ended job begins anew, without its `start`, `end` and `recoveries`; so does a canceled one. Then an expiry that is past is forgotten. `priority` is '' for the job's own;
-- `queue_record` is for the given one. With `hold`, the job is leased under this token instead of entering the queue: the
-- caller puts it there with `place`. `seen`: as for `requeue`.
-- Replies:
--   OK queue priority delayed_until changed...      delayed_until is '' when it waits
--   NO_QUEUE priority          the job keeps its priority, and this queue does not exist: create it, ask again
--   NOT_IN_STATUS c            canceled since the caller got its lease, which is dropped; the job is no longer queued
--   NOT_IN_STATUS b            it waits for other jobs; nothing was written
--   CHANGED status             the job is not as it was read; nothing was written
--   RUNNING                    another worker runs the job; nothing was written
--   QUEUED pk                  another job with this identifier is queued; nothing was written
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   GONE                       the record does not exist
local namespace, repr, pk, name = ARGV[1], ARGV[2], ARGV[4], ARGV[7]
local token, hold, lease_seconds, prepend = ARGV[11], ARGV[12], tonumber(ARGV[13]), ARGV[14] == '1'
local queue_recipe, ident = cjson.decode(ARGV[5]), repr .. ':' .. pk
local recipe = cjson.decode(ARGV[3])
local due = due_time(ARGV[9], ARGV[10])

if redis.call('SISMEMBER', recipe.key .. ':collection', pk) == 0 then return {'GONE'} end
local holder = redis.call('HGET', namespace .. ':claims', ident)
local is_repeated = hold ~= '' and holder == hold
local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'priority', 'follow_up', 'queued')
local status = values[1]
if not is_repeated and not is_as_read(recipe.key .. ':' .. pk .. ':hash', ARGV[15]) then return {'CHANGED', status or ''} end
-- RUNNING without a lease here: for a worker of version 2, or for queues of another namespace
local is_running = status == 'r' and not holder
if status == 'b' then return {'NOT_IN_STATUS', status} end
if is_running or (holder and holder ~= token and not is_repeated) then return {'RUNNING'} end
if status == 'c' and (holder or token ~= '') then  -- without a holder: this is repeated
  write_fields(recipe, pk, {'queued'}, {false})
  if holder then
    drop_lease(namespace, ident, holder)
    count_job(namespace, recipe, pk, 'c')
  end
  note_end(namespace, recipe, pk, status, values[3])
  return {'NOT_IN_STATUS', status}
end
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
local is_one_of_many = ARGV[15] ~= ''  -- then no list is looked through for what has ended: a million times that is for ever
if holder then
  drop_lease(namespace, ident, holder)
elseif not (is_one_of_many and end_of(status, values[4])) then
  leave_anywhere(namespace, queue_recipe, recipe, pk, ident, is_one_of_many)
end
write_fields(recipe, pk, {'status', 'queued', 'priority', 'delayed_until', 'queue_key', 'cancel_reason', 'progress'},
  {due and 'd' or 'w', '1', priority, due and format_date(due) or false, queue, false, false})
if status == 's' or status == 'e' then write_fields(recipe, pk, {'start', 'end', 'recoveries'}, {false, false, false}) end
if not due and status ~= 'w' then note_waiting(recipe, pk) end
if end_of(status, values[4]) then count_job(namespace, recipe, pk, 'q') end
if status == 's' or status == 'e' or status == 'c' then
  forget_result(recipe, pk)
  if not holder then forget_past_expiry(recipe, pk) end
end
if hold ~= '' then
  take_lease(namespace, ident, hold, now() + lease_seconds)
else
  enter(namespace, queue_recipe.key, name, queue, ident, due, prepend)
end
return {'OK', queue, priority, due and format_date(due) or '', unpack(changed)}
