-- remove: remove jobs with all that belongs to them, wherever they are; or Errors alone.
-- KEYS: models
-- ARGV: namespace queue_recipe forced reach entries...
-- Each entry is, as for `forget`: its ident; a JSON text, what to remove; the number of the fields that follow; and for
-- each of these a name and '=' with the value that the job had when it was read, or '' for no value. The JSON: `job`, null for
-- Errors alone, `errors` and `is_all` as for `forget`; `spares`: a job that ended well stays while children of it have yet to
-- run; `looks`: nothing is written. With `forced` ('1') a job goes that a process has: what that writes of it is refused then. Of its entries in
-- histories those go that are among the `reach` first or last ones. Who waits for it is told that it was canceled.
-- Replies:
--   OK results... changed...   of each entry, in their order, one of these:
--   REMOVED
--   GONE                       it had been removed; what was left of it is now
--   RUNNING                    a process has it; nothing was written
--   CHANGED                    it is not as it was read; nothing was written
--   NEEDED                     children have yet to run; nothing was written
--   MORE                       some was removed, and there is more than one call may remove: `follow_up`, and ask again
local namespace, queue_recipe, forced, reach = ARGV[1], cjson.decode(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local position, reply = 5, {'OK'}
allow_when_full(namespace)

local function leave_history(list, ident, times)
  for _ = 1, times do
    local is_late = redis.pcall('LPOS', list, ident, 'RANK', -1, 'MAXLEN', reach)
    local is_early = not is_late and redis.pcall('LPOS', list, ident, 'MAXLEN', reach)
    if type(is_late or is_early) ~= 'number' then return end
    redis.call('LREM', list, is_late and -1 or 1, ident)
  end
end

local function leave_histories(queue, ident, tries)
  if not queue then return end
  for _, one in ipairs(tries > 1 and queues_of(namespace, queue) or {queue}) do
    leave_history(one .. ':errors', ident, math.min(tries, 100))
    leave_history(one .. ':success', ident, 1)
  end
end

local function leave_places(what, ident, holder, is_gone, has_ended)
  if holder then
    drop_lease(namespace, ident, holder)
  elseif is_gone then
    stop_waiting(namespace, ident)
    if what.job.queue_key then leave(what.job.queue_key, ident) end
  elseif not has_ended then
    leave_anywhere(namespace, queue_recipe, what.job, what.job.pk, ident, true)
  end
  redis.call('ZREM', namespace .. ':expiring', ident)
  redis.call('ZREM', namespace .. ':followups', ident)
end

local function refusal(ident, what, holder, status, hash, first, fields)
  if (holder or status == 'r') and not forced then return 'RUNNING' end
  if changed_since_read(hash, first, fields) then return 'CHANGED' end
  if what.spares and has_open_children(namespace, what.job) then return 'NEEDED' end
end

local function remove(ident, what, first, fields)
  local hash = what.job.key .. ':' .. what.job.pk .. ':hash'
  local values = redis.call('HMGET', hash, 'status', 'queue_key', 'tries', 'follow_up', 'queued')
  local holder = redis.call('HGET', namespace .. ':claims', ident)
  local is_gone = redis.call('SISMEMBER', what.job.key .. ':collection', what.job.pk) == 0
  local refused = not is_gone and refusal(ident, what, holder, values[1], hash, first, fields)
  if refused or what.looks then return refused or 'REMOVED' end
  for _, record in ipairs(what.errors) do remove_record(record) end
  if not what.is_all or not tell_waiting(namespace, ident, what.job) then return 'MORE' end
  leave_histories(values[2] or what.job.queue_key, ident, math.max(count_of(values[3]), 1))
  local has_ended = end_of(values[1], values[5])
  leave_places(what, ident, holder, is_gone, has_ended)
  forget_queued(what.job)
  remove_record(what.job)
  if not has_ended and is_told({}, values[4], 'w') then publish(what.job, what.job.pk, 'status c') end
  return is_gone and 'GONE' or 'REMOVED'
end

while position <= #ARGV do
  local ident, what, fields = ARGV[position], cjson.decode(ARGV[position + 1]), tonumber(ARGV[position + 2])
  if what.job == cjson.null then
    for _, record in ipairs(what.errors) do remove_record(record) end
    reply[#reply + 1] = 'REMOVED'
  else
    reply[#reply + 1] = remove(ident, what, position + 3, fields)
  end
  position = position + 3 + 2 * fields
end
for _, item in ipairs(changed) do reply[#reply + 1] = item end
return reply
