-- purge: remove the oldest entries of a history of a queue, with the records of their jobs and errors.
-- KEYS: models
-- ARGV: namespace queue history entries...
-- Each entry is: its ident; a JSON text, what to remove; the number of the fields that follow; and for each of these a
-- name and '=' with the value that the job had when it was read, or '' for no value. The JSON: `job`, null to keep its
-- record, and `errors`; each record as `key`, `pk`, `index` (commands that remove its index entries) and `keys` (its
-- fields with keys of their own); of a job also its `identifier`, and `may_repeat`: it may have a later entry. A job that
-- has one, or has begun anew since, is kept; so is one that ended well whose children have yet to run, until `forget` removes
-- it. It ends at the first entry that is no longer the oldest one (another worker
-- was faster), or whose record was written to since.
-- Replies:
--   OK count kept...           entries removed; the idents of those whose records are kept
local namespace, list = ARGV[1], ARGV[2] .. ':' .. ARGV[3]
local kept, count, position = {}, 0, 4
allow_when_full(namespace)

-- 'same' as when it was read, begun 'anew', or 'written' to.
local function state_of(ident, job, first, fields)
  local hash = job.key .. ':' .. job.pk .. ':hash'
  if is_queued_or_held(namespace, ident, hash) then return 'anew' end
  local name = changed_since_read(hash, first, fields)
  if name == 'status' or name == 'end' then return 'anew' end
  return name and 'written' or 'same'
end

while position <= #ARGV do
  local ident, what, fields = ARGV[position], cjson.decode(ARGV[position + 1]), tonumber(ARGV[position + 2])
  if redis.call('LINDEX', list, 0) ~= ident then break end
  if what.job ~= cjson.null then
    local state = state_of(ident, what.job, position + 3, fields)
    if state == 'written' then break end
    local is_needed = state == 'same' and has_open_children(namespace, what.job)
    if is_needed then redis.call('ZADD', namespace .. ':expiring', 'NX', score(now()), ident) end
    if state == 'same' and not is_needed and not tell_waiting(namespace, ident, what.job) then break end
    if state == 'anew' or is_needed or (what.job.may_repeat and redis.call('LPOS', list, ident, 'RANK', 2)) then
      kept[#kept + 1] = ident
    else
      forget_queued(what.job)
      remove_record(what.job)
    end
  end
  for _, record in ipairs(what.errors) do remove_record(record) end
  redis.call('LPOP', list)
  count = count + 1
  position = position + 3 + 2 * fields
end

local reply = {'OK', tostring(count)}
for _, ident in ipairs(kept) do reply[#reply + 1] = ident end
return reply
