-- claim: take the next job of some queues, highest priority first, and give a lease on it.
-- KEYS: models
-- ARGV: namespace queue_model token lease_seconds start by_keys names_count names_and_keys...
-- `names` in the order of preference between equal priorities. `keys` are waiting lists that programs which do not ring
-- may have filled: they are looked at first. With `by_keys`, they alone are, in their order.
-- Replies:
--   CLAIMED ident queue name next_due status identifier priority tries cancel_on_error changed...
--              status w: RUNNING, start and tries are written; d or c: nothing is written, the job is leased all the same
--   STALE ident queue name next_due status
--              the entry was taken away: the job ended, or runs elsewhere (status r)
--   GONE ident queue name next_due      the entry was taken away: its record does not exist
--   UNKNOWN ident queue                 the class is not in the registry: register or reject it, nothing was taken
--   EMPTY next_due                      nothing waits; the doorbells are cleared
-- `next_due`: seconds until the first delayed job is due, '' when there is none.
-- Invariants: the same token gets the same job; a job is in the list or leased, never neither.
local namespace, queue_model, token, lease_seconds = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local start, by_keys, names_count = ARGV[5], ARGV[6] == '1', tonumber(ARGV[7])
local claims = namespace .. ':claims'
local current = now()

local function next_due()
  local first
  for position = 8, 7 + names_count do
    local found = redis.call('ZRANGE', side(namespace, 'due', queue_model, ARGV[position]), 0, 0, 'WITHSCORES')
    if found[1] and (not first or tonumber(found[2]) < first) then first = tonumber(found[2]) end
  end
  return first and score(first - current) or ''
end

local function first_of_keys()
  for position = 8 + names_count, #ARGV do
    local queue = string.match(ARGV[position], '^(.*):waiting$')
    if queue and redis.call('LLEN', ARGV[position]) > 0 then
      local name = redis.call('HGET', queue .. ':hash', 'name')
      if name then
        note_ready(namespace, queue_model, name, queue)
        if by_keys then return queue, name end
      end
    end
  end
end

local function first_of_names()
  local best, best_name, best_priority
  for position = 8, 7 + names_count do
    local name = ARGV[position]
    local ready = side(namespace, 'ready', queue_model, name)
    repeat
      local top = redis.call('ZREVRANGE', ready, 0, 0, 'WITHSCORES')
      if not top[1] or (best and tonumber(top[2]) <= best_priority) then break end
      local queue = queue_model .. ':' .. top[1]
      if redis.call('LLEN', queue .. ':waiting') > 0 and redis.call('HGET', queue .. ':hash', 'name') == name then
        best, best_name, best_priority = queue, name, tonumber(top[2])
        break
      end
      redis.call('ZREM', ready, top[1])  -- so this loop ends
    until false
  end
  return best, best_name
end

local function answer(ident, queue, name, recipe, pk, status)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash',
    'identifier', 'priority', 'tries', 'cancel_on_error')
  return {'CLAIMED', ident, queue, name, next_due(), status, values[1] or '', values[2] or '0', values[3] or '0',
    values[4] or '', unpack(changed)}
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
if not queue then
  for position = 8, 7 + names_count do redis.call('DEL', side(namespace, 'doorbell', queue_model, ARGV[position])) end
  return {'EMPTY', next_due()}
end

local waiting = queue .. ':waiting'
local ident = redis.call('LINDEX', waiting, 0)
local repr, pk = split_ident(ident)
local recipe = repr and recipe_of(namespace, repr)
if not recipe then return {'UNKNOWN', ident, queue} end

redis.call('LPOP', waiting)
ident = recipe.repr .. ':' .. pk
local hash = recipe.key .. ':' .. pk .. ':hash'
if redis.call('EXISTS', hash) == 0 then return {'GONE', ident, queue, name, next_due()} end
local values = redis.call('HMGET', hash, 'status', 'tries')
local status = values[1] or ''
if redis.call('HEXISTS', claims, ident) == 1 then return {'STALE', ident, queue, name, next_due(), 'r'} end
if status == 'w' then
  write_fields(recipe, pk, {'status', 'start', 'tries', 'queue_key'},
    {'r', start, tostring((tonumber(values[2] or '0') or 0) + 1), queue})
elseif status == 'd' or status == 'c' then
  write_fields(recipe, pk, {'queue_key'}, {queue})
else
  return {'STALE', ident, queue, name, next_due(), status}
end
take_lease(namespace, ident, token, current + lease_seconds)
return answer(ident, queue, name, recipe, pk, status)
