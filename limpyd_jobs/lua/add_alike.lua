-- add_alike: create jobs of a class that wait in one queue and need no more than their hash and sets, as `add` does.
-- KEYS: models
-- ARGV: namespace queue_model queue_recipe queue_name priority queue_record prepend values...
-- This script is made for a class of jobs (see recipes.alike): `CLASS` is what is known of it; `texts_of`, `task_of`, `in_own_sets`
-- and `in_shared_sets` write it out. `values` are of each job in turn, for each of some fields; the first is `identifier`.
-- Replies, in a list, for each job: the primary key of a new one; or a list, one of those of `add`
local namespace, queue_model, name, priority, is_prepended = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[7] == '1'
local count = (#ARGV - 7) / CLASS.width
local ready = side(namespace, 'ready', queue_model, name)
local queue, is_registered, are_all_new = nil, false, false
local pks, idents, fresh, replies = {}, {}, {}, {}  -- the first three of jobs that are written and have yet to enter

-- The queue, if it is known and all is well with its keys.
local function known_queue()
  local known = redis.pcall('HGET', side(namespace, 'queues', queue_model, name), priority)
  if type(known) ~= 'string' then return nil end
  local found_queue = queue_model .. ':' .. known
  local found = redis.pcall('HMGET', found_queue .. ':hash', 'name', 'priority')
  if found[1] ~= name or found[2] ~= priority then return nil end
  if type(redis.pcall('LLEN', found_queue .. ':waiting')) ~= 'number' then return nil end
  return type(redis.pcall('ZCARD', ready)) == 'number' and found_queue or nil
end

-- Is a job queued under an identifier, or has it so many records that the other way must look?
local function may_be_queued(identifier)
  if are_all_new then return false end
  local records = redis.pcall('SCARD', CLASS.by_identifier .. identifier)
  if records == 0 then return false end
  if type(records) ~= 'number' or records >= MANY_RECORDS / 2 then return true end
  return redis.call('SINTER', CLASS.by_identifier .. identifier, CLASS.by_queued .. '1')[1]
end

local function write(at, pk)
  in_own_sets(redis.call, 'SADD', at, pk)
  if count == 1 then in_shared_sets(redis.call, 'SADD', priority, pk) end
  redis.call('HSET', CLASS.key .. ':' .. pk .. ':hash', 'queue_key', queue, texts_of(at, priority))
end

local function enter_new()
  if not pks[1] then return end
  if count > 1 then in_shared_sets(redis.call, 'SADD', priority, unpack(pks)) end
  redis.call(is_prepended and 'LPUSH' or 'RPUSH', queue .. ':waiting', unpack(idents))
  redis.call('ZADD', ready, priority, string.sub(queue, #queue_model + 2))
  ring(namespace, queue_model, name, #pks)
end

-- How any job is added; it is made for the first one that is queued already, or whose queue is not as it should be.
local add_other
local function prepare()
-- (what scripts share)
  local way = way_to(namespace, CLASS.repr, CLASS.key, CLASS.recipe, queue_model, ARGV[3], name, priority, ARGV[6])
  add_other = function(at)
    local sets = {}
    local function collect(_, set) sets[#sets + 1] = set end
    in_own_sets(collect, '', at)
    in_shared_sets(collect, '', priority)
    return add_job(way, {identifier = ARGV[at], prepend = is_prepended, token = '', rest = '', sets = sets,
      texts = {texts_of(at, priority)}})
  end
end

if count > 1 then
  -- Is no job known by any of these identifiers, and are all indexes that they share as they should be?
  local is_good, answer = pcall(function()
    local keys = {}
    for at = 8, #ARGV, CLASS.width do keys[#keys + 1] = CLASS.by_identifier .. ARGV[at] end
    in_shared_sets(redis.call, 'SISMEMBER', priority, '')
    return redis.call('EXISTS', unpack(keys)) == 0
  end)
  are_all_new = is_good and answer
  if not is_good then queue = false end  -- each has to be looked at
end
for at = 8, #ARGV, CLASS.width do
  if queue == nil then queue = known_queue() end
  local identifier = ARGV[at]
  local is_written = false
  if queue and not fresh[identifier] and not may_be_queued(identifier) then
    if not is_registered and redis.call('HGET', KEYS[1], CLASS.repr) ~= CLASS.recipe then
      redis.call('HSET', KEYS[1], CLASS.repr, CLASS.recipe)
    end
    is_registered = true
    local pk
    repeat
      pk = tostring(redis.call('INCR', CLASS.key .. ':max_pk'))
    until redis.call('SADD', CLASS.key .. ':collection', pk) == 1
    is_written = pcall(write, at, pk)
    if is_written then
      pks[#pks + 1], idents[#idents + 1] = pk, CLASS.repr .. ':' .. pk
      if count > 1 then fresh[identifier] = true end
      replies[#replies + 1] = pk
      local field = 'a ' .. task_of(at) .. ' ' .. name
      numbers[field] = (numbers[field] or 0) + 1
    else  -- the other way says what is wrong
      in_own_sets(redis.pcall, 'SREM', at, pk)
      in_shared_sets(redis.pcall, 'SREM', priority, pk)
      redis.call('SREM', CLASS.key .. ':collection', pk)
    end
  end
  if not is_written then
    enter_new()
    pks, idents, fresh = {}, {}, {}
    if not add_other then prepare() end
    local reply = add_other(at)
    replies[#replies + 1], are_all_new = reply, false
    if reply[1] == 'NO_QUEUE' then break end
  end
end
enter_new()
write_numbers(namespace)
return replies
