-- add_alike: create jobs of a class that wait in one queue and need no more than their hash and sets, as `add` does.
-- KEYS: models
-- ARGV: namespace queue_model queue_recipe queue_name priority queue_record prepend values...
-- This script is made for a class of jobs (see recipes.alike): `CLASS` is what is known of it, `texts_of`, `add_to_sets`
-- and `add_to_shared_sets` write it out. `values` are of each job in turn, for each of some fields; the first is `identifier`.
-- Replies, in a list, for each job: the primary key of a new one; or a list, one of those of `add`, or
--   FAILED error               of a command that wrote it
local namespace, queue_model, name, priority, is_prepended = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[7] == '1'
local queue, is_registered = nil, false
local pks, idents, fresh, replies = {}, {}, {}, {}  -- the first three of jobs that are written and have yet to enter

-- The queue, if it is known and all is well with its keys; it is noted as one that may hold work.
local function known_queue()
  local known = redis.pcall('HGET', side(namespace, 'queues', queue_model, name), priority)
  if type(known) ~= 'string' then return nil end
  local found_queue = queue_model .. ':' .. known
  local found = redis.pcall('HMGET', found_queue .. ':hash', 'name', 'priority')
  if found[1] ~= name or found[2] ~= priority then return nil end
  if type(redis.pcall('LLEN', found_queue .. ':waiting')) ~= 'number' then return nil end
  local noted = redis.pcall('ZADD', side(namespace, 'ready', queue_model, name), priority, known)
  return type(noted) == 'number' and found_queue or nil
end

-- Is no job known by any of these identifiers? Then none of them is queued.
local function are_unknown()
  local keys = {}
  for at = 8, #ARGV, CLASS.width do keys[#keys + 1] = CLASS.by_identifier .. ARGV[at] end
  return redis.call('EXISTS', unpack(keys)) == 0
end

local function create_alike(at)
  local pk
  repeat
    pk = tostring(redis.call('INCR', CLASS.key .. ':max_pk'))
  until redis.call('SADD', CLASS.key .. ':collection', pk) == 1
  add_to_sets(at, pk)
  redis.call('HSET', CLASS.key .. ':' .. pk .. ':hash', 'queue_key', queue, texts_of(at, priority))
  return pk
end

local function enter_new()
  if not pks[1] then return end
  add_to_shared_sets(priority, unpack(pks))
  redis.call(is_prepended and 'LPUSH' or 'RPUSH', queue .. ':waiting', unpack(idents))
  ring(namespace, queue_model, name, #pks)
  pks, idents, fresh = {}, {}, {}
end

-- How any job is added; it is made for the first one that is queued already, or whose queue is not as it should be.
local add_other
local function prepare()
-- (what scripts share)
  local way = way_to(namespace, CLASS.repr, CLASS.key, CLASS.recipe, queue_model, ARGV[3], name, priority, ARGV[6])
  add_other = function(at)
    local function add_to_all_sets(pk)
      add_to_sets(at, pk)
      add_to_shared_sets(priority, pk)
    end
    local is_done, reply = pcall(add_job, way, {identifier = ARGV[at], prepend = is_prepended, token = '', rest = '',
      sets = {}, texts = {texts_of(at, priority)}, add_to_sets = add_to_all_sets})
    changed = {}
    return is_done and reply or {'FAILED', error_text(reply)}
  end
end

local are_all_new = #ARGV > 7 + CLASS.width and are_unknown()
for at = 8, #ARGV, CLASS.width do
  queue = queue or known_queue()
  local identifier = ARGV[at]
  local is_new = queue and not fresh[identifier]
    and (are_all_new or not redis.call('SINTER', CLASS.by_identifier .. identifier, CLASS.by_queued .. '1')[1])
  if is_new then
    if not is_registered and redis.call('HGET', KEYS[1], CLASS.repr) ~= CLASS.recipe then
      redis.call('HSET', KEYS[1], CLASS.repr, CLASS.recipe)
    end
    is_registered = true
    local is_done, pk = pcall(create_alike, at)
    if is_done then
      pks[#pks + 1], idents[#idents + 1], fresh[identifier] = pk, CLASS.repr .. ':' .. pk, true
      replies[#replies + 1] = pk
    else
      replies[#replies + 1] = {'FAILED', error_text(pk)}
    end
  else
    enter_new()
    if not add_other then prepare() end
    replies[#replies + 1] = add_other(at)
  end
end
enter_new()
return replies
