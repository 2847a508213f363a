-- look: which of some jobs that were claimed ahead may not begin as they are, and which names of queues are paused.
-- KEYS: models
-- ARGV: marks_count marks_and_hashes...
-- The marks are the keys of the sets `ready` of the names, the hashes those of the jobs.
-- Replies, in two lists:
--   the places of the names that are paused
--   the place of each job that is not WAITING, and its status; '' when it has none
local names_end = 1 + tonumber(ARGV[1])
local paused, others = {}, {}
for position = 2, names_end do
  if type(redis.pcall('ZSCORE', ARGV[position], PAUSED)) == 'string' then paused[#paused + 1] = tostring(position - 1) end
end
for position = names_end + 1, #ARGV do
  local status = redis.pcall('HGET', ARGV[position], 'status')
  if status ~= 'w' then
    others[#others + 1] = tostring(position - names_end)
    others[#others + 1] = type(status) == 'string' and status or ''
  end
end
return {paused, others}
