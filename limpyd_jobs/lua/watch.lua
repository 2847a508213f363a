-- watch: ask to be told of the ends of some jobs, and say how they are now.
-- KEYS: models
-- ARGV: namespace hashes_and_marks...
-- For each job the key of its hash, and '1' if its field `follow_up` is ours: `w` is written there, unless the job has
-- ended, so that what becomes of it is published (see note_end). Who asks has subscribed before: nothing is missed.
-- Replies, for each job, a state and its `end` ('' for none):
--   ENDED end                  for good: what is to be requeued after an error is queued, and in no such status for long
--   GONE end                   there is no record, or something else is under its key
--   RUNNING end
--   OPEN end                   it waits, is delayed, was canceled and somebody has yet to come to it...
allow_when_full(ARGV[1])
local reply = {}

local function state_of(status, is_queued)
  if status == 'r' then return 'RUNNING' end
  local is_end = status == 's' or status == 'e' or status == 'c'
  return is_end and not is_queued and 'ENDED' or 'OPEN'
end

for position = 2, #ARGV, 2 do
  local hash = ARGV[position]
  local values = redis.pcall('HMGET', hash, 'status', 'queued', 'end', 'follow_up')
  local is_there = not values.err and (values[1] or redis.call('EXISTS', hash) == 1)
  local state = is_there and state_of(values[1], values[2]) or 'GONE'
  local asks = ARGV[position + 1] == '1' and (state == 'RUNNING' or state == 'OPEN')
  if asks and not string.find(values[4] or '', 'w', 1, true) then
    redis.call('HSET', hash, 'follow_up', (values[4] or '') .. 'w')
  end
  reply[#reply + 1] = state
  reply[#reply + 1] = is_there and values[3] or ''
end
return reply
