-- claim: take the next job of some queues, highest priority first, and give a lease on it.
-- KEYS: models
-- ARGV: namespace queue_model token lease_seconds start by_keys names_count keys_count names_keys_and_broken...
-- `lease_seconds`: its class may say another number. `names` in the order of preference between equal priorities.
-- `keys` are waiting lists that programs which do not ring may have filled: they are looked at first. With `by_keys`, they
-- alone are, in their order. `broken` are keys that the caller knows to be of a wrong type: their queues are passed over.
-- Replies:
--   CLAIMED ident queue name next_due status identifier priority tries cancel_on_error lease_seconds changed...
--              status w: RUNNING, start and tries are written; d or c: nothing is written, the job is leased all the same
--   STALE ident queue name next_due status
--              the entry was taken away: the job ended (it is no longer queued), or runs elsewhere (status r)
--   GONE ident queue name next_due      the entry was taken away: its record does not exist
--   UNKNOWN ident queue                 the class is not in the registry: register or reject it, nothing was taken
--   UNREADABLE ident queue key          its record, under this key, is not a hash: reject it, nothing was taken
--   BROKEN key                          something of another type is under this key of a queue, nothing was taken
--   BROKEN key index                    the same, under an index of the first job of the waiting list `key`
--   EMPTY next_due                      nothing waits; the doorbells are cleared
-- `next_due`: seconds until the first delayed job is due, '' when there is none.
-- Invariants: the same token gets the same job; a job is in the list or leased, never neither.
local namespace, queue_model, token, lease_seconds = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local start, by_keys, names_count, keys_count = ARGV[5], ARGV[6] == '1', tonumber(ARGV[7]), tonumber(ARGV[8])
local claims = namespace .. ':claims'
allow_when_full(namespace)
local current = now()

local broken = {}
for position = 9 + names_count + keys_count, #ARGV do broken[ARGV[position]] = true end

-- Ask for something under a key; a key of a wrong type is the answer to this claim, unless the caller knows it.
local found_broken
local function ask(command, key, ...)
  if broken[key] then return nil end
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    found_broken = found_broken or key
    return nil
  end
  return reply
end

local function next_due()
  local first
  for position = 9, 8 + names_count do
    local found = ask('ZRANGE', side(namespace, 'due', queue_model, ARGV[position]), 0, 0, 'WITHSCORES') or {}
    if found[1] and (not first or tonumber(found[2]) < first) then first = tonumber(found[2]) end
  end
  return first and score(first - current) or ''
end

local function name_of(queue)
  return ask('HGET', queue .. ':hash', 'name')
end

local function first_of_keys()
  for position = 9 + names_count, 8 + names_count + keys_count do
    local queue = string.match(ARGV[position], '^(.*):waiting$')
    if queue and (ask('LLEN', ARGV[position]) or 0) > 0 then
      local name = name_of(queue)
      if name and ask('ZCARD', side(namespace, 'ready', queue_model, name)) then
        note_ready(namespace, queue_model, name, queue)
        if by_keys then return queue, name end
      end
    end
  end
end

local function first_of_names()
  local best, best_name, best_priority
  for position = 9, 8 + names_count do
    local name = ARGV[position]
    local ready, passed = side(namespace, 'ready', queue_model, name), 0
    repeat
      local top = ask('ZREVRANGE', ready, passed, passed, 'WITHSCORES') or {}
      if not top[1] or (best and tonumber(top[2]) <= best_priority) then break end
      local queue = queue_model .. ':' .. top[1]
      local length = ask('LLEN', queue .. ':waiting')
      if not length or broken[queue .. ':hash'] then
        passed = passed + 1  -- a broken queue: there are few of them
      elseif length > 0 and name_of(queue) == name then
        best, best_name, best_priority = queue, name, tonumber(top[2])
        break
      else
        redis.call('ZREM', ready, top[1])  -- so this loop ends
      end
    until found_broken
  end
  return best, best_name
end

local function answer(ident, queue, name, recipe, pk, status)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash',
    'identifier', 'priority', 'tries', 'cancel_on_error')
  return {'CLAIMED', ident, queue, name, next_due(), status, values[1] or '', values[2] or '0', values[3] or '0',
    values[4] or '', tostring(recipe.lease_seconds or lease_seconds), unpack(changed)}
end

local again = redis.call('HGET', claims, token)
if again then
  local repr, pk = split_ident(again)
  local recipe = recipe_of(namespace, repr)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'queue_key', 'status')
  if values[1] then
    local name = redis.call('HGET', values[1] .. ':hash', 'name') or ''
    return answer(again, values[1], name, recipe, pk, values[2] == 'r' and 'w' or values[2])
  end
  drop_lease(namespace, again, token)  -- the record was deleted meanwhile
end

local queue, name = first_of_keys()
if not by_keys then queue, name = first_of_names() end
if found_broken then return {'BROKEN', found_broken} end
if not queue then
  for position = 9, 8 + names_count do redis.call('DEL', side(namespace, 'doorbell', queue_model, ARGV[position])) end
  return {'EMPTY', next_due()}
end

local waiting = queue .. ':waiting'
local ident = redis.call('LINDEX', waiting, 0)
local repr, pk = split_ident(ident)
local recipe = repr and recipe_of(namespace, repr)
if not recipe then return {'UNKNOWN', ident, queue} end
local hash = recipe.key .. ':' .. pk .. ':hash'
local kind = redis.call('TYPE', hash).ok
if kind ~= 'hash' and kind ~= 'none' then return {'UNREADABLE', ident, queue, hash} end

ident = recipe.repr .. ':' .. pk
local values = redis.call('HMGET', hash, 'status', 'tries')
local status = values[1] or ''
if kind == 'none' then
  status = 'GONE'
elseif redis.call('HEXISTS', claims, ident) == 1 then
  status = 'r'
elseif status == 'w' or status == 'd' or status == 'c' then  -- the lease first: the job is never in no place
  local index = status == 'w' and (broken_index(recipe, 'status', 'w', 'r') or broken_index(recipe, 'status', 's', 'e')
    or broken_index(recipe, 'queued', '1'))
  if index then return {'BROKEN', waiting, index} end
  take_lease(namespace, ident, token, current + (recipe.lease_seconds or lease_seconds))
  redis.call('LPOP', waiting)
  if status == 'w' then
    write_fields(recipe, pk, {'status', 'start', 'tries', 'queue_key'},
      {'r', start, tostring(count_of(values[2]) + 1), queue})
  else
    write_fields(recipe, pk, {'queue_key'}, {queue})
  end
  return answer(ident, queue, name, recipe, pk, status)
end
redis.call('LPOP', waiting)
if status ~= 'GONE' and status ~= 'r' then write_fields(recipe, pk, {'queued'}, {false}) end
if status == 'GONE' then return {status, ident, queue, name, next_due()} end
return {'STALE', ident, queue, name, next_due(), status}
