-- exchange: record the successes of some jobs, and claim the next ones, in one round trip.
-- KEYS: models
-- ARGV: namespace queue_model worker lease_seconds max_recoveries by_keys names_count start looks_around number runs_count claims_count ends_count keys_count names_ends_keys_and_broken...
-- An end: ident token queue start end extra; `extra` as for `finish`; `start` is '' when its record says that the job runs, else the job was claimed ahead.
-- All else is as for `claim`, but that up to `claims_count` jobs are claimed, under the tokens worker-number, worker-number+1...
-- The first `runs_count` of them are RUNNING; the others are claimed ahead: leased, and WAITING until they begin. A job
-- whose lease has lapsed before, or whose class is given back never, is not claimed ahead, nor is anything after it. One that
-- may expire, or has limits, is never claimed ahead: it would begin later, and nobody would look at the time again. Neither is a job whose lease
-- has lapsed as often as it may claimed after others that run, nor anything after it: if it kills its worker, it kills nothing else.
-- Replies, in two lists: for each end one of those of `finish`, like
--   OK length keep changed...
--   FAILED error               of a command that was to record it
-- then, unless one of these is neither OK nor ALREADY, for each claim one of those of `claim`; what is not a claim comes last:
--   CLAIMED ident queue name next_due status identifier priority tries cancel_on_error lease_seconds how run_options changed...
-- Invariants: as for `finish` and `claim`; a repeated call records and claims nothing twice.
-- Made for a class of jobs, if there is one whose jobs change no index but those of status and `queued`, and these are sets:
-- `CLASS` is what is known of it (see recipes.plain_life). Its jobs go the quick way; it writes what the other one does.
local namespace, queue_model, worker, max_recoveries, start = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5]), ARGV[8]
local names_count, may_claim = tonumber(ARGV[7]), true
local names_end = 14 + names_count
local ends_end = names_end + 6 * tonumber(ARGV[13])
local keys_end = ends_end + tonumber(ARGV[14])
local claims_key, leases_key = namespace .. ':claims', namespace .. ':leases'
local ends, claims, steps = {}, {}, {}
local time = redis.call('TIME')
local now_text = time[1] .. '.' .. string.format('%06d', time[2])
redis.call('HDEL', claims_key, '')  -- takes no memory: so what follows is allowed when that is full

local is_known = CLASS and redis.call('HGET', namespace .. ':models', CLASS.repr) == CLASS.recipe
local prefix_end = CLASS and #CLASS.repr + 1
local function pk_of(ident)
  if is_known and string.sub(ident, 1, prefix_end) == CLASS.prefix then return string.sub(ident, prefix_end + 1) end
end

local function task_field()  -- nothing, if the class has none: it is not asked for then
  if CLASS.task then return CLASS.task end
end

local queues = {}  -- what is known of those that jobs were in: nothing changes that here
local function facts_of(queue)
  queues[queue] = queues[queue] or redis.pcall('HMGET', queue .. ':hash', 'name', 'keep_success')
  return queues[queue]
end

local function change_status(pk, old, new)
  local target = CLASS.status .. new
  if redis.call('SMOVE', CLASS.status .. old, target, pk) == 0 then redis.call('SADD', target, pk) end  -- it was not where it should be
end

local function end_quickly(ident, token, queue, begun, ended)
  local pk = pk_of(ident)
  if not pk or token == '' then return nil end
  local holders = redis.call('HMGET', claims_key, ident, '*' .. ident)
  if holders[1] ~= token or holders[2] then return nil end  -- who holds a place, too, goes the other way
  local hash = CLASS.key .. ':' .. pk .. ':hash'
  local values, task
  if begun == '' then
    values = redis.call('HMGET', hash, 'status', 'queued', 'tries', 'follow_up', 'run_options', 'start', task_field())
    task = values[7]
  else
    values = redis.call('HMGET', hash, 'status', 'queued', 'tries', 'follow_up', 'run_options', 'added', 'waiting_since', task_field())
    task = values[8]
  end
  local status = values[1]
  if values[5] and string.find(values[5], '"keep_success"', 1, true) then return nil end
  if values[4] or values[2] ~= '1' or not (status == 'r' and begun == '' or status == 'w' and begun ~= '') then return nil end
  change_status(pk, status, 's')
  redis.call('SREM', CLASS.queued .. '1', pk)
  if status == 'r' then
    redis.call('HSET', hash, 'status', 's', 'end', ended)
  else
    redis.call('HSET', hash, 'status', 's', 'end', ended, 'start', begun, 'tries', next_count(values[3]))
  end
  redis.call('HDEL', hash, 'queued')
  redis.call('ZREM', leases_key, ident)
  redis.call('HDEL', claims_key, ident, token)
  if CLASS.keep_success then
    redis.pcall('ZADD', namespace .. ':expiring', string.format('%.6f', now_text + CLASS.keep_success), ident)
  end
  local length, keep, name = push_history(queue, 'success', ident, facts_of(queue))
  local of = ' ' .. (task or CLASS.repr) .. ' ' .. name
  if begun ~= '' then tally_time('w', of, values[7] or values[6], begun) end
  tally_time('s', of, begun ~= '' and begun or values[6], ended)
  steps[#steps + 1] = token .. '/finish'
  return {'OK', tostring(length), keep}
end

-- A claim on the first job of the queue, if it is plain; `is_ahead`: after another one.
local top, deadline  -- the first of what is ready, until a claim goes the other way
local function claim_quickly(token, is_ahead)
  local name = ARGV[15]
  top = top or redis.pcall('ZREVRANGE', namespace .. CLASS.ready .. name, 0, 0)[1]
  if not top or top == '' then return nil end  -- '' is the mark of a paused name
  local queue = queue_model .. ':' .. top
  local waiting = queue .. ':waiting'
  local ident = redis.pcall('LINDEX', waiting, 0)
  local pk = type(ident) == 'string' and pk_of(ident)
  if not pk or facts_of(queue)[1] ~= name then return nil end
  local holders = redis.call('HMGET', claims_key, token, ident)
  if holders[1] or holders[2] then return nil end
  local hash = CLASS.key .. ':' .. pk .. ':hash'
  local values
  if is_ahead then
    values = redis.pcall('HMGET', hash, 'status', 'tries', 'identifier', 'priority', 'cancel_on_error', 'recoveries', 'queue_key',
      'run_options', 'follow_up')
  else
    values = redis.pcall('HMGET', hash, 'status', 'tries', 'identifier', 'priority', 'cancel_on_error', 'recoveries', 'queue_key',
      'run_options', 'follow_up', 'added', 'waiting_since', task_field())
  end
  if values[1] ~= 'w' or values[6] or values[9] then return nil end
  local said = values[8]  -- the other way looks at the time, and for a place
  if said and (string.find(said, '"expires"', 1, true) or string.find(said, '"limits"', 1, true)) then return nil end
  local has_next = (CLASS.max_recoveries or max_recoveries) > 0
  if is_ahead and not has_next then return nil end

  local seconds = CLASS.lease_seconds or ARGV[4]
  deadline = deadline or string.format('%.6f', now_text + seconds)
  redis.call('ZADD', leases_key, deadline, ident)
  redis.call('HSET', claims_key, ident, token, token, ident)
  redis.call('LPOP', waiting)
  local tries = values[2] or '0'
  if is_ahead then
    if values[7] ~= queue then redis.call('HSET', hash, 'queue_key', queue) end
  else
    tries = next_count(tries)
    change_status(pk, 'w', 'r')
    redis.call('HSET', hash, 'status', 'r', 'tries', tries, 'start', start, 'queue_key', queue)
    tally_time('w', ' ' .. (values[12] or CLASS.repr) .. ' ' .. name, values[11] or values[10], start)
  end
  return {'CLAIMED', ident, queue, name, '?', 'w', values[3] or '', values[4] or '0', tries, values[5] or '', seconds,
    is_ahead and '1' or '0', values[8] or ''}, has_next
end

-- How any job is ended and claimed: made for the first one that is not plain.
local end_other, claim_other
local function prepare()
-- (what scripts share)
  local wanted = {namespace = namespace, queue_model = queue_model, lease_seconds = tonumber(ARGV[4]),
    by_keys = ARGV[6] == '1', start = start, looks_around = ARGV[9] == '1', max_recoveries = max_recoveries,
    names = slice(ARGV, 15, names_end), keys = slice(ARGV, ends_end + 1, keys_end), broken = set_of(ARGV, keys_end + 1, #ARGV)}
  end_other = function(at)
    local reply = record_success(namespace, ARGV[at], ARGV[at + 1], worker, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], steps)
    changed = {}
    return reply
  end
  claim_other = function(token, is_ahead, is_after)
    wanted.token, wanted.is_ahead, wanted.is_after = token, is_ahead, is_after
    local reply, has_next = claim_next(wanted)
    changed, wanted.looks_around = {}, false
    if not wanted.by_keys then wanted.keys = NOTHING end
    return reply, has_next
  end
end

for at = names_end + 1, ends_end, 6 do
  local is_done, reply = true, nil
  if is_known and ARGV[at + 5] == '' then
    is_done, reply = pcall(end_quickly, ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  end
  if is_done and not reply then
    if not end_other then prepare() end
    is_done, reply = pcall(end_other, at)
  end
  if not is_done then reply = {'FAILED', error_text(reply)} end
  ends[#ends + 1] = reply
  if reply[1] == 'ALREADY' then steps[#steps + 1] = ARGV[at + 1] .. '/finish' end  -- of a call that failed: remember it on
  may_claim = may_claim and (reply[1] == 'OK' or reply[1] == 'ALREADY')
end
if steps[1] then mark_done(namespace, table.concat(steps, ' '), worker, '') end

local number, count = tonumber(ARGV[10]), may_claim and tonumber(ARGV[12]) or 0
local is_quick = is_known and names_count == 1 and keys_end == #ARGV and keys_end == ends_end and ARGV[6] == '0' and ARGV[9] == '0'
local runs_count = tonumber(ARGV[11])
for position = 0, count - 1 do
  local token = worker .. '-' .. (position == 0 and ARGV[10] or string.format('%.0f', number + position))
  local reply, has_next
  if is_quick then reply, has_next = claim_quickly(token, position >= runs_count) end
  if not reply then
    if not claim_other then prepare() end
    top = nil
    reply, has_next = claim_other(token, position >= runs_count, position > 0)
    is_quick = is_quick or is_known and names_count == 1 and keys_end == #ARGV and ARGV[6] == '0'
  end
  if reply then claims[#claims + 1] = reply end
  local is_claimed = reply and reply[1] == 'CLAIMED' and reply[12] ~= '2'
  if not (has_next or is_claimed and position + 1 < runs_count) then break end
end
write_numbers(namespace, time)
return {ends, claims}
