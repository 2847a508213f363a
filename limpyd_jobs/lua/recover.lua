-- recover: give the jobs whose lease lapsed back to the head of their waiting lists, at most 100 a call.
-- KEYS: models
-- ARGV: namespace queue_model token lease_seconds max_recoveries
-- A job that had failed and was about to be requeued waits again, without its `start` and `end`; one that was about to
-- be delayed is delayed; a canceled one is let go. A job that ran counts in `recoveries`; one that did so more often than
-- `max_recoveries` (its class may say another number), one whose queue was deleted, and one that was executed at once, in
-- no queue, is *doomed*: the caller gets its lease, under `token` and a number, and records the error with `fail`. What
-- cannot be decided now (a class that the registry lost, something else under the keys of the queue, or of the record)
-- keeps its lease for another minute.
-- Jobs of version 2's workers have no lease: they are never touched.
-- Replies:
--   OK recovered_count doomed_count unknown_count idents... doomed... unknown... changed...
--                              idents: they wait or are delayed; doomed: ident, token, reason ('LOST', 'HOMELESS' or
--                              'ALONE'), queue, queue name, identifier, recoveries; unknown: register their classes
local namespace, queue_model, token = ARGV[1], ARGV[2], ARGV[3]
local lease_seconds, max_recoveries = tonumber(ARGV[4]), tonumber(ARGV[5])
local leases, claims = namespace .. ':leases', namespace .. ':claims'
local current = now()
local recovered, doomed, doomed_count, unknown = {}, {}, 0, {}
allow_when_full(namespace)

local function postpone(ident)
  redis.call('ZADD', leases, score(current + 60), ident)
end

local function doom(recipe, pk, ident, old_token, reason)
  doomed_count = doomed_count + 1
  local new_token = token .. '-' .. doomed_count
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'queue_key', 'identifier', 'recoveries')
  local name = values[1] and redis.call('HGET', values[1] .. ':hash', 'name')
  if not values[1] then reason = 'ALONE' end
  drop_lease(namespace, ident, old_token)
  take_lease(namespace, ident, new_token, current + lease_seconds)
  for _, item in ipairs({ident, new_token, reason, values[1] or '', name or '', values[2] or '', values[3] or '0'}) do
    doomed[#doomed + 1] = item
  end
end

local function decide(ident, recipe, pk)
  local old_token = redis.call('HGET', claims, ident) or ''
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'recoveries', 'start')
  local count
  if values[1] == 'r' or (values[1] == 'd' and values[3]) then  -- it ran; it may have written that it is DELAYED
    count = count_of(values[2]) + 1
    if count > (recipe.max_recoveries or max_recoveries) then
      write_fields(recipe, pk, {'recoveries'}, {tostring(count)})
      return doom(recipe, pk, ident, old_token, 'LOST')
    end
  elseif values[1] == 'w' then  -- claimed ahead: perhaps it had just begun and took its worker down; it goes alone now
    count = math.max(count_of(values[2]), 1)
  end
  local done = give_back(namespace, queue_model, recipe, pk, ident, old_token)
  if done == 'HOMELESS' then
    doom(recipe, pk, ident, old_token, done)
  elseif done == 'BROKEN' then
    postpone(ident)
  elseif done == 'OK' then
    if count then write_fields(recipe, pk, {'recoveries'}, {tostring(count)}) end
    recovered[#recovered + 1] = ident
    count_job(namespace, recipe, pk, 'v')
  end
end

for _, ident in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', score(current), 'LIMIT', 0, 100)) do
  local repr, pk = split_ident(ident)
  local recipe = repr and recipe_of(namespace, repr)
  if not recipe then
    postpone(ident)
    unknown[#unknown + 1] = ident
  elseif not pcall(decide, ident, recipe, pk) then
    postpone(ident)  -- not a hash, or not a set under an index: nobody can decide, and the others must go on
  end
end

local reply = {'OK', tostring(#recovered), tostring(doomed_count), tostring(#unknown)}
for _, list in ipairs({recovered, doomed, unknown, changed}) do
  for _, item in ipairs(list) do reply[#reply + 1] = item end
end
return reply
