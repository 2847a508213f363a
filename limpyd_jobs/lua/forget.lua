-- forget: remove ended jobs that were kept for a time of their own, when that is over, wherever they are.
-- KEYS: models
-- ARGV: namespace entries...
-- Each entry is, as for `purge`: its ident; a JSON text, what to remove; the number of the fields that follow; and for
-- each of these a name and '=' with the value that the job had when it was read, or '' for no value. The JSON: `job` and
-- `errors` as for `purge`; `is_all`: these are all of its errors, so the job may go; else there are more, and it stays.
-- What is not due any more is passed over, and so is a job that was written to since: it will be read anew. Of a job that
-- is no longer ended only the note goes. One that ended well stays while children of it have yet to run, and is due ten
-- minutes later. Its entries in the histories of its queue go, too, and those of its failures in
-- the queues of other priorities: that means to look through them from the oldest on, so it ends after 100,000 of them.
-- Replies:
--   OK done removed...         how many entries it came to; the idents of the jobs that were removed
local MOST_SCANNED, OPEN_SECONDS = 100000, 600
local namespace, expiring = ARGV[1], ARGV[1] .. ':expiring'
local current, scanned, done, removed, position = now(), 0, 0, {}, 2
allow_when_full(namespace)

-- Take an ident out of a history, `times` at most; answers how often it was there.
local function leave_history(list, ident, times)
  if times <= 0 then return 0 end
  local first = times == 1 and redis.pcall('LPOS', list, ident)
  local length = redis.pcall('LLEN', list)
  if type(length) ~= 'number' then return 0 end  -- something else is under its key
  scanned = scanned + (type(first) == 'number' and first or length)
  if times == 1 and not first then return 0 end
  return redis.call('LREM', list, times, ident)
end

-- Each try has left an entry in one of them, but for one that was canceled, or lost with its worker.
local function leave_histories(queue, ident, status, tries)
  if not queue then return end
  local failures = status == 'e' and math.max(tries, 1) or tries - 1
  for _, one in ipairs(tries > 1 and queues_of(namespace, queue) or {queue}) do
    failures = failures - leave_history(one .. ':errors', ident, failures)
  end
  if status == 's' then leave_history(queue .. ':success', ident, failures + 1) end
end

local function forget(ident, what, first, fields)
  local hash = what.job.key .. ':' .. what.job.pk .. ':hash'
  local values = redis.pcall('HMGET', hash, 'status', 'queue_key', 'tries')
  local status = not values.err and values[1]
  local has_ended = status == 's' or status == 'e' or status == 'c'
  if not has_ended or is_queued_or_held(namespace, ident, hash) then
    redis.call('ZREM', expiring, ident)
  elseif not changed_since_read(hash, first, fields) then
    local is_needed, looked = has_open_children(namespace, what.job)
    scanned = scanned + looked
    if is_needed then
      redis.call('ZADD', expiring, score(current + OPEN_SECONDS), ident)
      return
    end
    for _, record in ipairs(what.errors) do remove_record(record) end
    if not what.is_all or not tell_waiting(namespace, ident, what.job) then return end
    leave_histories(values[2], ident, status, count_of(values[3]))
    forget_queued(what.job)
    remove_record(what.job)
    redis.call('ZREM', expiring, ident)
    removed[#removed + 1] = ident
  end
end

while position <= #ARGV and scanned < MOST_SCANNED do
  local ident, fields = ARGV[position], tonumber(ARGV[position + 2])
  local due = redis.call('ZSCORE', expiring, ident)
  if due and tonumber(due) <= current then forget(ident, cjson.decode(ARGV[position + 1]), position + 3, fields) end
  done = done + 1
  position = position + 3 + 2 * fields
end
return {'OK', tostring(done), unpack(removed)}
