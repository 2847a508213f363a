-- reject: move an ident that nobody can run, because its class or its record cannot be had, from the waiting list to the
-- errors.
-- KEYS: models
-- ARGV: namespace queue ident record end recipe
-- `record` is its Error, or ''. `recipe`, or '', is what its class means if it is like Job: a record that is found by it,
-- waiting or delayed (of version 2, or of a registry that was lost), ends in ERROR.
-- Replies:
--   OK error_pk length keep      length and keep as for `finish`, of the list `errors`
--   GONE                       the ident waits there no longer
--   TAKEN field                a unique value of the Error belongs to another; nothing was written
local queue, ident = ARGV[2], ARGV[3]
local record = ARGV[4] ~= '' and cjson.decode(ARGV[4])
local recipe = ARGV[6] ~= '' and cjson.decode(ARGV[6])
allow_when_full(ARGV[1])

local function end_record()
  local _, pk = split_ident(ident)
  if not recipe or not pk then return end
  local values = redis.pcall('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued', 'follow_up')
  if values.err or not values[2] or (values[1] ~= 'w' and values[1] ~= 'd') then return end
  write_fields(recipe, pk, {'status', 'end', 'queued'}, {'e', ARGV[5], false})
  note_end(ARGV[1], recipe, pk, 'e', values[3])
end

local conflict = record and taken(record)
if conflict then return {'TAKEN', conflict} end
if not redis.call('LPOS', queue .. ':waiting', ident) then return {'GONE'} end
local length, keep = push_history(queue, 'errors', nil, ident)
redis.call('LREM', queue .. ':waiting', 1, ident)
end_record()
tally_time('e', ' ' .. (split_ident(ident) or '?') .. ' ' .. queue_name(queue), false)
write_numbers(ARGV[1])
return {'OK', record and create(record) or '', tostring(length), keep}
