-- purge: remove the oldest entries of a history of a queue, with the records of their jobs and errors.
-- KEYS: models
-- ARGV: namespace queue history entries...
-- Each entry is: its ident; a JSON text, what to remove; the number of the fields that follow; and for each of these a
-- name and '=' with the value that the job had when it was read, or '' for no value. The JSON: `job`, null to keep its
-- record, and `errors`; each record as `key`, `pk`, `index` (commands that remove its index entries) and `keys` (its
-- fields with keys of their own); of a job also its `identifier`, and `may_repeat`: it may have a later entry. A job that
-- has one, or has begun anew since, is kept. It ends at the first entry that is no longer the oldest one (another worker
-- was faster), or whose record was written to since.
-- Replies:
--   OK count kept...           entries removed; the idents of those whose records are kept
local namespace, list = ARGV[1], ARGV[2] .. ':' .. ARGV[3]
local kept, count, position = {}, 0, 4
allow_when_full(namespace)

local function remove(record)
  for _, command in ipairs(record.index) do redis.pcall(unpack(command)) end  -- under a key of another type is no entry
  local keys = {record.key .. ':' .. record.pk .. ':hash'}
  for _, name in ipairs(record.keys) do keys[#keys + 1] = record.key .. ':' .. record.pk .. ':' .. name end
  redis.call('DEL', unpack(keys))
  redis.call('SREM', record.key .. ':collection', record.pk)
end

-- 'same' as when it was read, begun 'anew', or 'written' to.
local function state_of(ident, job, first, fields)
  local hash, state = job.key .. ':' .. job.pk .. ':hash', 'same'
  if redis.call('HEXISTS', namespace .. ':claims', ident) == 1 or redis.call('HEXISTS', hash, 'queued') == 1 then
    return 'anew'
  end
  for field = 0, fields - 1 do
    local name, value = ARGV[first + 2 * field], redis.call('HGET', hash, ARGV[first + 2 * field])
    if (value and '=' .. value or '') ~= ARGV[first + 2 * field + 1] then
      if name == 'status' or name == 'end' then return 'anew' end
      state = 'written'
    end
  end
  return state
end

-- Who still waits for a job is told that there is nothing to wait for; false when there are too many of them for one call.
local function tell_waiting(ident, job)
  local values = redis.call('HMGET', job.key .. ':' .. job.pk .. ':hash', 'follow_up', 'status')
  if not is_told({}, values[1], 'c') then return true end
  local status = values[2] == 's' and 's' or 'c'
  return not tell_on(namespace, {{ident = ident, cursor = 0, status = status, is_removed = true}}, {})
end

local function forget_queued(job)
  local last = job.key .. ':last_queued'
  for _, name in ipairs(job.identifier and {job.identifier, job.identifier .. RERUN} or NOTHING) do
    if redis.call('HGET', last, name) == job.pk then redis.call('HDEL', last, name) end
  end
end

while position <= #ARGV do
  local ident, what, fields = ARGV[position], cjson.decode(ARGV[position + 1]), tonumber(ARGV[position + 2])
  if redis.call('LINDEX', list, 0) ~= ident then break end
  if what.job ~= cjson.null then
    local state = state_of(ident, what.job, position + 3, fields)
    if state == 'written' then break end
    if state == 'same' and not tell_waiting(ident, what.job) then break end
    if state == 'anew' or (what.job.may_repeat and redis.call('LPOS', list, ident, 'RANK', 2)) then
      kept[#kept + 1] = ident
    else
      forget_queued(what.job)
      remove(what.job)
    end
  end
  for _, record in ipairs(what.errors) do remove(record) end
  redis.call('LPOP', list)
  count = count + 1
  position = position + 3 + 2 * fields
end

local reply = {'OK', tostring(count)}
for _, ident in ipairs(kept) do reply[#reply + 1] = ident end
return reply
