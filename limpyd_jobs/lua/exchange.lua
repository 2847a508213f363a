-- exchange: record the successes of some jobs, and claim the next ones, in one round trip.
-- KEYS: models
-- ARGV: namespace queue_model worker lease_seconds max_recoveries by_keys names_count start looks_around number claims_count ends_count keys_count names_ends_keys_and_broken...
-- An end: ident token queue start end; `start` is '' when its record says that the job runs, else the job was claimed ahead.
-- All else is as for `claim`, but that up to `claims_count` jobs are claimed, under the tokens worker-number, worker-number+1...
-- The first of them is RUNNING; those after it are claimed ahead: they are leased and stay WAITING until they begin. A job
-- whose lease has lapsed before, or whose class is given back never, is claimed ahead of nothing, and nothing after it.
-- Replies, in two lists: for each end one of those of `finish`; then, unless one of these is not OK or ALREADY, for each
-- claim one of those of `claim`: others than CLAIMED come last.
-- Invariants: as for `finish` and `claim`; a repeated call records and claims nothing twice.
local namespace, worker, max_recoveries = ARGV[1], ARGV[3], tonumber(ARGV[5])
local names_end = 13 + tonumber(ARGV[7])
local ends_end = names_end + 5 * tonumber(ARGV[12])
local keys_end = ends_end + tonumber(ARGV[13])
local ends, claims, steps, may_claim = {}, {}, {}, true
allow_when_full(namespace)

for at = names_end + 1, ends_end, 5 do
  local reply = record_success(namespace, ARGV[at], ARGV[at + 1], worker, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], steps)
  if changed[1] then changed = {} end
  ends[#ends + 1] = reply
  may_claim = may_claim and (reply[1] == 'OK' or reply[1] == 'ALREADY')
end
if steps[1] then mark_done(namespace, table.concat(steps, ' '), worker, '') end

local wanted = {namespace = namespace, queue_model = ARGV[2], lease_seconds = tonumber(ARGV[4]), by_keys = ARGV[6] == '1',
  start = ARGV[8], looks_around = ARGV[9] == '1', max_recoveries = max_recoveries, names = slice(ARGV, 14, names_end),
  keys = slice(ARGV, ends_end + 1, keys_end), broken = set_of(ARGV, keys_end + 1, #ARGV)}
local number, count = tonumber(ARGV[10]), may_claim and tonumber(ARGV[11]) or 0
for position = 0, count - 1 do
  wanted.token, wanted.is_ahead = worker .. '-' .. string.format('%.0f', number + position), position > 0
  local reply, has_next = claim_next(wanted)
  claims[#claims + 1] = reply
  if changed[1] then changed = {} end
  if not has_next then break end
  wanted.keys, wanted.looks_around = NOTHING, false
end
return {ends, claims}
