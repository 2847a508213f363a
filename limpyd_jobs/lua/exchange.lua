-- exchange: record the successes of some jobs, and claim the next ones, in one round trip.
-- KEYS: models
-- ARGV: caller worker lease_seconds start number counts names_ends_keys_and_broken...
-- `caller` is JSON: namespace, queue_model, max_recoveries, by_keys. `counts` are of the claims, of those that run at once, of
-- names, ends and keys, and 1 for one who looks around, with blanks between.
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
-- or, for a job that is claimed the quick way and waited in a queue of the only name, unless `next_due` is asked for, what is not known already:
--   RUNS ident queue tries identifier priority [run_options cancel_on_error lease_seconds]
--   AHEAD ident queue tries identifier priority [run_options cancel_on_error lease_seconds]
-- Invariants: as for `finish` and `claim`; a repeated call records and claims nothing twice.
-- Made for a class of jobs, if there is one whose jobs change no index but those of status and `queued`, and these are sets:
-- `CLASS` is what is known of it (see recipes.plain_life). Its jobs go the quick way, those in a row that are alike in few commands;
-- it writes what the other one does.
local MOST_AT_ONCE = 500  -- Lua has room for some thousand values at a time
local worker, start = ARGV[2], ARGV[4]
local claims_count, runs_count, names_count, ends_count, keys_count, looks_around = 1, 1, 1, 1, 0, '0'
if ARGV[6] ~= '1 1 1 1 0 0' then  -- which most calls say
  claims_count, runs_count, names_count, ends_count, keys_count, looks_around =
    string.match(ARGV[6], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d)$')
  claims_count, runs_count = tonumber(claims_count), tonumber(runs_count)
end
local names_end = 6 + names_count
local ends_end = names_end + 6 * ends_count
local keys_end = ends_end + keys_count
local namespace = CLASS and CLASS.namespace or cjson.decode(ARGV[1]).namespace
local claims_key, leases_key = namespace .. ':claims', namespace .. ':leases'
local ends, claims, steps = {}, {}, {}

local is_known = CLASS and redis.call('HGET', KEYS[1], CLASS.repr) == CLASS.recipe
local prefix_end = CLASS and #CLASS.prefix
local function pk_of(ident)
  if string.sub(ident, 1, prefix_end) == CLASS.prefix then return string.sub(ident, prefix_end + 1) end
end

local queues = {}  -- what is known of those that jobs were in: nothing changes that here
local function facts_of(queue)
  local facts = queues[queue]
  if not facts then
    facts = redis.pcall('HMGET', queue .. ':hash', 'name', 'keep_success')
    queues[queue] = facts
  end
  return facts
end

local function change_status(pks, count, old, new)
  local from, to = CLASS.status .. old, CLASS.status .. new
  -- the first one alone: if one of these is no set, nothing has changed
  if redis.call('SMOVE', from, to, pks[1]) == 0 then redis.call('SADD', to, pks[1]) end  -- it was not where it should be
  if count > 1 then
    redis.call('SREM', from, unpack(pks, 2, count))
    redis.call('SADD', to, unpack(pks, 2, count))
  end
end

local function class_task()  -- nothing, if the class has none: it is not asked for then
  if CLASS.task then return CLASS.task end
end

-- The values of the record of a job that ended, if it is plain; `begun` is '' if the record says that it runs.
local function read_end(hash, begun)
  local values
  if begun == '' then
    values = redis.call('HMGET', hash, 'status', 'queued', 'follow_up', 'run_options', 'start', class_task())
  else
    values = redis.call('HMGET', hash, 'status', 'queued', 'follow_up', 'run_options', 'tries', 'added', 'waiting_since', class_task())
  end
  if values[1] ~= (begun == '' and 'r' or 'w') or values[2] ~= '1' or values[3] then return nil end
  if values[4] and string.find(values[4], '"keep_success"', 1, true) then return nil end
  return values
end

-- Record the plain ends in a row from one on, `most` at most, if they are of one queue, and all ran or were all claimed ahead: the sets
-- first, as what fails there may be done again. Answers how many.
local function end_quickly(first, most)
  local ident, queue, was_ahead = ARGV[first], ARGV[first + 2], ARGV[first + 3] ~= ''
  local pk = pk_of(ident)
  if not pk or ARGV[first + 1] == '' or ARGV[first + 5] ~= '' then return 0 end
  -- mostly it is one job: to make a list of what is in it costs less than to put that in
  local wanted, pks, idents, asked = 1, {pk}, {ident}, {ident, '*' .. ident}
  for at = first + 6, math.min(ends_end, first + 6 * most) - 1, 6 do
    ident = ARGV[at]
    pk = pk_of(ident)
    local is_alike = ARGV[at + 2] == queue and (ARGV[at + 3] ~= '') == was_ahead
    if not (pk and is_alike) or ARGV[at + 1] == '' or ARGV[at + 5] ~= '' then break end
    wanted = wanted + 1
    pks[wanted], idents[wanted], asked[2 * wanted - 1], asked[2 * wanted] = pk, ident, ident, '*' .. ident
  end
  local holders = redis.call('HMGET', claims_key, unpack(asked))
  local count, records = 0, {}
  for place = 1, wanted do
    local at = first + 6 * (place - 1)
    if holders[2 * place - 1] ~= ARGV[at + 1] or holders[2 * place] then break end  -- who holds a place goes the other way
    local values = read_end(CLASS.key .. ':' .. pks[place] .. ':hash', ARGV[at + 3])
    if not values then break end
    count, records[place], asked[2 * place] = place, values, ARGV[at + 1]
  end
  if count == 0 then return 0 end

  change_status(pks, count, was_ahead and 'w' or 'r', 's')
  redis.call('SREM', CLASS.queued .. '1', unpack(pks, 1, count))
  for place = 1, count do
    local at, hash = first + 6 * (place - 1), CLASS.key .. ':' .. pks[place] .. ':hash'
    if was_ahead then
      redis.call('HSET', hash, 'status', 's', 'end', ARGV[at + 4], 'start', ARGV[at + 3], 'tries', next_count(records[place][5]))
    else
      redis.call('HSET', hash, 'status', 's', 'end', ARGV[at + 4])
    end
    redis.call('HDEL', hash, 'queued')
  end
  redis.call('ZREM', leases_key, unpack(idents, 1, count))
  redis.call('HDEL', claims_key, unpack(asked, 1, 2 * count))  -- idents and tokens
  if CLASS.keep_success then
    for place = 1, count do redis.pcall('ZADD', namespace .. ':expiring', score(now() + CLASS.keep_success), idents[place]) end
  end
  local length, keep, name = push_history(queue, 'success', facts_of(queue), unpack(idents, 1, count))
  for place = 1, count do
    local at, values = first + 6 * (place - 1), records[place]
    local begun = ARGV[at + 3]
    local of = ' ' .. (values[was_ahead and 8 or 6] or CLASS.repr) .. ' ' .. name
    if was_ahead then tally_time('w', of, values[7] or values[6], begun) end
    tally_time('s', of, was_ahead and begun or values[5], ARGV[at + 4])
    steps[#steps + 1] = ARGV[at + 1] .. '/finish'
    ends[#ends + 1] = {'OK', length < 0 and length or length - count + place, keep}
  end
  return count
end

local function token_of(position)
  return worker .. '-' .. (position == 0 and ARGV[5] or string.format('%.0f', ARGV[5] + position))
end

-- The record of a waiting job, if it is plain.
local function read_claim(hash, is_ahead)
  local values
  if is_ahead then
    values = redis.pcall('HMGET', hash, 'status', 'tries', 'identifier', 'priority', 'cancel_on_error', 'recoveries', 'run_options',
      'follow_up', 'queue_key')
  else
    values = redis.pcall('HMGET', hash, 'status', 'tries', 'identifier', 'priority', 'cancel_on_error', 'recoveries', 'run_options',
      'follow_up', 'added', 'waiting_since', class_task())
  end
  if values[1] ~= 'w' or values[6] or values[8] then return nil end
  local said = values[7]  -- the other way looks at the time, and for a place
  if said and (string.find(said, '"expires"', 1, true) or string.find(said, '"limits"', 1, true)) then return nil end
  return values
end

-- What a claim has to look at that looks around, with one name: answers when the next job is due, as text; or nil, if there is
-- something that the other way sees to.
local function look_around()
-- (what scripts share)
  local look_at = next_look(namespace)
  if look_at and look_at < now() + 1 then return nil end  -- a second early does no harm: that way looks at the time
  for _, key in ipairs({CLASS.status .. 'w', CLASS.status .. 'r', CLASS.status .. 's', CLASS.status .. 'e', CLASS.queued .. '1'}) do
    if type(redis.pcall('SCARD', key)) ~= 'number' then return nil end
  end
  return next_due(namespace, CLASS.queue_model, {ARGV[7]}, redis.pcall)
end

-- Claim the plain jobs in a row at the head of the first queue, for the claims from a position on, up to `wanted`. Answers how many.
local top  -- the first of what is ready, until a claim goes the other way
local due  -- when the next job is due, if the quick way has looked around
local function claim_quickly(position, wanted)
  local name = ARGV[7]
  top = top or redis.pcall('ZREVRANGE', namespace .. CLASS.ready .. name, '0', '0')[1]
  if wanted < 1 or not top or top == '' then return 0 end  -- '' is the mark of a paused name
  local queue = CLASS.queue_model .. ':' .. top
  local waiting = queue .. ':waiting'
  local idents = wanted == 1 and {redis.pcall('LINDEX', waiting, '0')} or redis.pcall('LRANGE', waiting, '0', wanted - 1)
  if type(idents[1]) ~= 'string' or facts_of(queue)[1] ~= name then return 0 end
  local pk = pk_of(idents[1])
  if not pk then return 0 end
  local asked, pks = {idents[1], token_of(position)}, {pk}
  for place = 2, #idents do
    pk = pk_of(idents[place])
    if not pk then break end
    pks[place], asked[2 * place - 1], asked[2 * place] = pk, idents[place], token_of(position + place - 1)
  end
  local holders = redis.call('HMGET', claims_key, unpack(asked))
  local count, records, seen = 0, {}, {}
  for place = 1, #pks do
    local ident = idents[place]
    if holders[2 * place - 1] or holders[2 * place] or seen[ident] then break end
    local values = read_claim(CLASS.key .. ':' .. pks[place] .. ':hash', position + place > runs_count)
    if not values then break end
    count, records[place] = place, values
    if wanted > 1 then seen[ident] = true end
  end
  if count == 0 then return 0 end

  if not ends[1] then allow_when_full(namespace) end
  local deadline, token = score(now() + (CLASS.lease_seconds or ARGV[3])), asked[2]
  local leases, pairs_of = {deadline, idents[1]}, {idents[1], token, token, idents[1]}
  for place = 2, count do
    local ident = idents[place]
    token = asked[2 * place]
    leases[2 * place - 1], leases[2 * place] = deadline, ident
    pairs_of[4 * place - 3], pairs_of[4 * place - 2], pairs_of[4 * place - 1], pairs_of[4 * place] = ident, token, token, ident
  end
  redis.call('ZADD', leases_key, unpack(leases))
  redis.call('HSET', claims_key, unpack(pairs_of))
  if count == 1 then redis.call('LPOP', waiting) else redis.call('LTRIM', waiting, count, -1) end
  local running = math.max(math.min(runs_count - position, count), 0)
  if running > 0 then change_status(pks, running, 'w', 'r') end
  for place = 1, count do
    local values, hash = records[place], CLASS.key .. ':' .. pks[place] .. ':hash'
    local tries = values[2] or '0'
    if place <= running then
      tries = next_count(tries)
      redis.call('HSET', hash, 'status', 'r', 'tries', tries, 'start', start, 'queue_key', queue)
      tally_time('w', ' ' .. (values[11] or CLASS.repr) .. ' ' .. name, values[10] or values[9], start)
    elseif values[9] ~= queue then
      redis.call('HSET', hash, 'queue_key', queue)
    end
    local reply
    if due and position + place == 1 then
      reply = {'CLAIMED', idents[1], queue, name, due, 'w', values[3] or '', values[4] or '0', tries, values[5] or '',
        CLASS.lease_seconds or ARGV[3], running > 0 and '0' or '1', values[7] or ''}
    else
      reply = {place <= running and 'RUNS' or 'AHEAD', idents[place], queue, tries, values[3] or '', values[4] or '0'}
      if values[7] or values[5] or CLASS.lease_seconds then
        reply[7], reply[8], reply[9] = values[7] or '', values[5] or '', CLASS.lease_seconds
      end
    end
    claims[#claims + 1] = reply
  end
  return count
end

-- How any job is ended and claimed: made for the first one that is not plain.
local end_other, claim_other
local function prepare()
-- (what scripts share)
  allow_when_full(namespace)
  local caller = cjson.decode(ARGV[1])
  local wanted = {namespace = namespace, queue_model = caller.queue_model, lease_seconds = tonumber(ARGV[3]),
    by_keys = caller.by_keys, start = start, looks_around = looks_around == '1', max_recoveries = caller.max_recoveries,
    names = slice(ARGV, 7, names_end), keys = slice(ARGV, ends_end + 1, keys_end), broken = set_of(ARGV, keys_end + 1, #ARGV)}
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

-- How many to look at together next: few after one that was not plain, so that most of what is read is of use.
local function next_reach(reach, count)
  return count == 0 and 1 or math.min(2 * reach, MOST_AT_ONCE)
end

local at, may_claim, reach = names_end + 1, true, MOST_AT_ONCE
while at < ends_end do
  local is_done, count = true, 0
  if is_known then
    is_done, count = pcall(end_quickly, at, reach)
    if not is_done and reach > 1 then
      reach, is_done, count = 1, pcall(end_quickly, at, 1)  -- whatever is wrong, is it so with this one?
    end
  end
  local reply
  if not is_done then
    reply, count = {'FAILED', error_text(count)}, 0
  elseif count == 0 then
    if not end_other then prepare() end
    is_done, reply = pcall(end_other, at)
    if not is_done then reply = {'FAILED', error_text(reply)} end
  end
  reach = next_reach(reach, count)
  if reply then
    ends[#ends + 1] = reply
    if reply[1] == 'ALREADY' then steps[#steps + 1] = ARGV[at + 1] .. '/finish' end  -- of a call that failed: remember it on
    may_claim = may_claim and (reply[1] == 'OK' or reply[1] == 'ALREADY')
  end
  at = at + 6 * math.max(count, 1)
end
if steps[1] then mark_done(namespace, table.concat(steps, ' '), worker, '') end

local is_alone = is_known and names_count + 0 == 1 and keys_end == #ARGV  -- the only name, and nothing to go round
local is_quick = is_alone and keys_end == ends_end and may_claim and claims_count > 0
if is_quick and looks_around ~= '0' then
  due = look_around()
  is_quick = due ~= nil
end
local position, most = 0, claims_count
if is_alone and claims_count > runs_count and (CLASS.max_recoveries or cjson.decode(ARGV[1]).max_recoveries) < 1 then most = runs_count end
reach = MOST_AT_ONCE
while may_claim and position < claims_count do
  local count = is_quick and claim_quickly(position, math.min(most - position, reach)) or 0
  position, reach = position + count, next_reach(reach, count)
  if count == 0 then
    if not claim_other then prepare() end
    top = nil
    local reply, has_next = claim_other(token_of(position), position >= runs_count, position > 0)
    position, is_quick = position + 1, is_quick or is_alone
    if reply then claims[#claims + 1] = reply end
    local is_claimed = reply and reply[1] == 'CLAIMED' and reply[12] ~= '2'
    if not (has_next or is_claimed and position < runs_count) then break end
  elseif position >= most then
    break
  end
end
write_numbers(namespace)
return {ends, claims}
