-- write: change one or several fields of a record, hash and indexes together.
-- KEYS: hash
-- ARGV: recipe pk must_exist namespace may_end command names_and_values...
-- With `may_end` ('1') the record is of a job, and the status may be written: whoever follows it is told of an end. Not
-- yet, while it is queued: then the worker that comes to it tells.
-- `command` is hset (names and values), hdel (names), hsetnx (one name and value), hincrby or hincrbyfloat (one name
-- and amount).
-- Replies:
--   GONE                       the record does not exist, and must
--   or what the command itself answers
local recipe, pk, command = cjson.decode(ARGV[1]), ARGV[2], ARGV[6]
local hash = KEYS[1]
if ARGV[3] == '1' and redis.call('SISMEMBER', recipe.key .. ':collection', pk) == 0 then return 'GONE' end

local function note_written_end()
  if ARGV[5] ~= '1' then return end
  local values = redis.call('HMGET', hash, 'status', 'queued', 'follow_up')
  if not values[2] then note_end(ARGV[4], recipe_of(ARGV[4], recipe.repr) or recipe, pk, values[1], values[3]) end
end

if command == 'hset' then
  local names, values, added = {}, {}, 0
  for position = 7, #ARGV, 2 do
    names[#names + 1], values[#values + 1] = ARGV[position], ARGV[position + 1]
    added = added + 1 - redis.call('HEXISTS', hash, ARGV[position])
  end
  write_fields(recipe, pk, names, values)
  note_written_end()
  return added
elseif command == 'hdel' then
  local names, values, removed = {}, {}, 0
  for position = 7, #ARGV do
    names[#names + 1], values[#values + 1] = ARGV[position], false
    removed = removed + redis.call('HEXISTS', hash, ARGV[position])
  end
  write_fields(recipe, pk, names, values)
  return removed
end

local name, argument = ARGV[7], ARGV[8]
local old = redis.call('HGET', hash, name)
local result = redis.call(command, hash, name, argument)
reindex(recipe, pk, name, old, redis.call('HGET', hash, name))
return result
