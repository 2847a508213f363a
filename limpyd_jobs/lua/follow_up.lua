-- follow_up: go on telling the children of jobs that they have ended, where there were too many for the script that wrote it.
-- KEYS: models
-- ARGV: namespace deleted
-- `deleted`: the ident of a job that is about to be deleted, or '': its children are told that it was canceled.
-- Replies:
--   OK has_more unknown_count unknown... changed...
--                              has_more: '1' when there is more to do at once; unknown: idents whose classes are not in the
--                              registry, so that their parents have to wait; register them
-- Bounded by the number of children; what is told twice changes nothing, as only a BLOCKED job is released or canceled, and it
-- waits for a set of idents.
local namespace, deleted = ARGV[1], ARGV[2]
local jobs, unknown = {}, {}
allow_when_full(namespace)
if deleted ~= '' then jobs[1] = {ident = deleted, cursor = 0, status = 'c', is_removed = true} end
local noted = redis.call('ZREVRANGE', namespace .. ':followups', 0, 99, 'WITHSCORES')
for position = 1, #noted, 2 do  -- those that could not be told come last
  local cursor = tonumber(noted[position + 1])
  if cursor < 0 then cursor = -cursor - 1 end
  if noted[position] ~= deleted then
    jobs[#jobs + 1] = {ident = noted[position], cursor = cursor, is_noted = true}
  else
    jobs[1].cursor, jobs[1].is_noted = cursor, true
  end
end
local has_more = tell_on(namespace, jobs, unknown)
local reply = {'OK', has_more and '1' or '0', tostring(#unknown)}
for _, list in ipairs({unknown, changed}) do
  for _, item in ipairs(list) do reply[#reply + 1] = item end
end
return reply
