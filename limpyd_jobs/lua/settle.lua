-- settle: put one job in order: its place, its lease, its limits, whom it waits for, and what its record says of all that.
-- KEYS: models
-- ARGV: namespace ident plan places...
-- places...: where else than its record says it was found: each as a word, a key and a member. `waiting` or `delayed`, a queue;
-- `parked`, the key of a limit and the member; `held`, the key of a limit; `token`, that names it; `twin`, the primary key of
-- another job that is queued under its identifier.
-- It works out what is wrong, step by step, from all that it finds now. `plan`: '' to be told the steps; else what was told, each
-- step ended by a newline: then they are made, if they are still the same. So what was wrong for a moment only is left alone.
-- Replies:
--   FINE                       nothing is wrong with it; nothing was written
--   PLAN steps...              what would be done, and was not: each a word, and what it is about
--   DONE changed...
--   UNKNOWN                    the registry does not have its class; nothing was written
local MOST_PARENTS = 1000
local namespace, ident, plan = ARGV[1], ARGV[2], ARGV[3]
local repr, pk = split_ident(ident)
local recipe = repr and recipe_of(namespace, repr)
if not recipe then return {'UNKNOWN'} end
local key, claims, leases = recipe.key .. ':' .. pk, namespace .. ':claims', namespace .. ':leases'
local noted = namespace .. ':limits:jobs'
local values = redis.call('HMGET', key .. ':hash', 'status', 'queued', 'queue_key', 'delayed_until', 'run_options', 'identifier',
  'follow_up')
local status, queued, queue_key, delayed_until = values[1] or '', values[2] == '1', values[3], values[4]
local exists = redis.call('EXISTS', key .. ':hash') == 1
local token, deadline = redis.call('HGET', claims, ident), redis.call('ZSCORE', leases, ident)
local has_place_held = redis.call('HEXISTS', claims, '*' .. ident) == 1
local note = cjson.decode(redis.call('HGET', noted, ident) or '{}')
local steps, actions = {}, {}

local function step(text, action)
  steps[#steps + 1], actions[#actions + 1] = text, action or function() end
end

local function limit(of, part)
  return namespace .. ':limit:' .. of .. ':' .. part
end

-- Where it is by now: entries {kind, key, member, count}, and the keys of limits of which it holds places; tokens that name it.
local entries, held, tokens, twin, seen = {}, {}, {}, nil, {}
local function see(kind, where, member)
  if seen[kind .. ' ' .. where .. ' ' .. member] then return end
  seen[kind .. ' ' .. where .. ' ' .. member] = true
  if kind == 'waiting' then
    local found = redis.pcall('LPOS', where .. ':waiting', ident, 'COUNT', 0)
    if not found.err and #found > 0 then entries[#entries + 1] = {kind, where, ident, #found} end
  elseif kind == 'delayed' then
    local due = redis.pcall('ZSCORE', where .. ':delayed', ident)
    if type(due) == 'string' then entries[#entries + 1] = {kind, where, ident, 1, due} end
  elseif kind == 'parked' then
    if redis.call('ZSCORE', limit(where, 'parked'), member) then entries[#entries + 1] = {kind, where, member, 1} end
  elseif kind == 'held' then
    if redis.call('ZSCORE', limit(where, 'held'), ident) then held[#held + 1] = where end
  elseif kind == 'token' then
    if redis.call('HGET', claims, where) == ident then tokens[#tokens + 1] = where end
  elseif kind == 'twin' then
    local other = redis.call('HMGET', recipe.key .. ':' .. where .. ':hash', 'queued', 'identifier', 'status')
    if other[1] == '1' and other[2] == values[6] and other[3] ~= 'b' then twin = where end
  end
end
local own_parked = note.state == 'parked' and string.format('%016.0f', note.number) .. ' ' .. ident
if queue_key then
  see('waiting', queue_key, '')
  see('delayed', queue_key, '')
end
if own_parked then see('parked', note.key, own_parked) end
if note.state == 'held' then see('held', note.key, '') end
for position = 4, #ARGV, 3 do see(ARGV[position], ARGV[position + 1], ARGV[position + 2]) end

-- Which one of its entries stays: the lowest rank; nil for one that may not.
local function rank_of(entry)
  local is_own = entry[2] == queue_key
  if entry[1] == 'parked' then return entry[2] == note.key and entry[3] == own_parked and 3 or nil end
  if (entry[1] == 'delayed') == (status == 'd') then return is_own and 1 or 2 end
  return is_own and 4 or 5
end
local best
for _, entry in ipairs(entries) do
  local rank = rank_of(entry)
  if rank and (not best or rank < best) then best = rank end
end
local is_known = string.find('wdrsecb', status, 1, true) and status ~= ''
local is_canceled_alone = status == 'c' and not queue_key and token and deadline  -- executed at once: its process comes to it
local has_ended = status == 's' or status == 'b' or ((status == 'e' or status == 'c') and not queued and not is_canceled_alone)
local is_leased = exists and not has_ended and ((token and deadline) or ((token or deadline) and not best))
local kept
for _, entry in ipairs(entries) do
  local may_stay = exists and not has_ended and not is_leased and status ~= 'e'
  if may_stay and best and not kept and rank_of(entry) == best then kept = entry end
end

local function leave_one(entry, left)
  if entry[1] == 'waiting' then
    redis.call('LREM', entry[2] .. ':waiting', left > 0 and -(entry[4] - left) or 0, ident)
  else
    redis.call('ZREM', entry[1] == 'delayed' and entry[2] .. ':delayed' or limit(entry[2], 'parked'), entry[3])
  end
end
for _, entry in ipairs(entries) do
  local left = entry == kept and 1 or 0
  if entry[4] > left then
    step('leave ' .. (entry[1] == 'parked' and limit(entry[2], 'parked') or entry[2] .. ':' .. entry[1]), function()
      leave_one(entry, left)
    end)
  end
end

-- Its lease.
local lease_token = token or 'repaired/' .. ident
if is_leased and not token then
  step('return', function() take_lease(namespace, ident, lease_token, now()) end)
elseif is_leased and not deadline then
  step('lapse', function() take_lease(namespace, ident, lease_token, now()) end)
elseif is_leased and redis.call('HGET', claims, token) ~= ident then
  step('prove', function() redis.call('HSET', claims, token, ident) end)
elseif not is_leased and (token or deadline) then
  step('drop', function()
    redis.call('ZREM', leases, ident)
    redis.call('HDEL', claims, ident, lease_token)
  end)
end
for _, one in ipairs(tokens) do
  if one ~= token then step('untoken ' .. one, function() redis.call('HDEL', claims, one) end) end
end

-- Its limits.
local counts_under = is_leased and (note.state == 'held' or has_place_held or #held > 0) and (held[1] or note.key)
if counts_under then
  local is_right = note.state == 'held' and note.key == counts_under and has_place_held and #held > 0
  if not is_right then
    step('hold ' .. counts_under, function()
      redis.call('ZADD', limit(counts_under, 'held'), 'NX', score(now()), ident)
      redis.call('HSET', claims, '*' .. ident, '1')
      redis.call('HSET', noted, ident, cjson.encode({state = 'held', key = counts_under}))
    end)
  end
elseif has_place_held or note.state == 'held' then
  step('unhold ' .. (note.key or ''), function()
    redis.call('HDEL', claims, '*' .. ident)
    redis.call('HDEL', noted, ident)
    if note.key then redis.call('ZADD', namespace .. ':limits:due', 'XX', score(now()), note.key) end
  end)
end
for _, one in ipairs(held) do
  if one ~= counts_under then
    step('unhold ' .. one, function()
      redis.call('ZREM', limit(one, 'held'), ident)
      redis.call('ZADD', namespace .. ':limits:due', 'XX', score(now()), one)
    end)
  end
end
if note.state == 'parked' and not (kept and kept[1] == 'parked') and not counts_under then
  step('forget ' .. note.key, function() redis.call('HDEL', noted, ident) end)
elseif kept and kept[1] == 'parked' and not redis.call('ZSCORE', namespace .. ':limits:due', kept[2]) then
  step('look ' .. kept[2], function() redis.call('ZADD', namespace .. ':limits:due', score(now()), kept[2]) end)
end

-- Put it back where its record says that it was.
local function enter_again()
  local owner = string.match(queue_key or '', '^(.*):[^:]*$')
  local name = owner and redis.pcall('HGET', queue_key .. ':hash', 'name')
  if type(name) ~= 'string' or broken_key(namespace, owner, name, queue_key) then
    step('homeless ' .. (queue_key or 'none'))
    return
  end
  local due = status == 'd' and parse_date(delayed_until)
  local rival = not queued and values[6] and find_queued(recipe, values[6])
  if due and due <= now() then due = nil end
  if rival and rival ~= pk then
    step('rival ' .. recipe.repr .. ':' .. rival)
    return
  end
  step('enter ' .. queue_key, function()
    write_fields(recipe, pk, {'status', 'queued', 'delayed_until'}, {due and 'd' or 'w', '1', due and delayed_until or false})
    enter(namespace, owner, name, queue_key, ident, due or nil, true)
  end)
end

local function be(letter, until_when)
  step('status ' .. letter, function()
    write_fields(recipe, pk, {'status', 'delayed_until'}, {letter, until_when or delayed_until})
  end)
end

-- What its record says.
local function settle_record()
  local is_alone = is_leased and not queue_key
  if is_leased and not is_known then be('r') end
  if kept and kept[1] == 'delayed' and status ~= 'd' and status ~= 'c' then
    be('d', format_date(tonumber(kept[5])))
  elseif kept and kept[1] ~= 'delayed' and status ~= 'w' and status ~= 'd' and status ~= 'c' then
    be('w')
  end
  local is_lost = not is_known and queued  -- nobody knows how far it was
  local is_blocked = is_lost and redis.call('SCARD', key .. ':waits_for') > 0
  local is_back = not kept and not is_leased and (status == 'w' or status == 'd' or is_lost) and not is_blocked
  if is_back then
    enter_again()
  elseif is_blocked and not kept and not is_leased then
    be('b')
  elseif status == 'r' and not kept and not is_leased then
    step('return', function()
      write_fields(recipe, pk, {'queued'}, {queue_key and '1'})
      take_lease(namespace, ident, lease_token, now())
    end)
  elseif (kept or (is_leased and not is_alone) or status == 'b') and not queued then
    step('mark', function() write_fields(recipe, pk, {'queued'}, {'1'}) end)
  elseif values[2] and not kept and not is_leased and status ~= 'b' then
    step('unmark', function()
      write_fields(recipe, pk, {'queued'}, {false})
      note_end(namespace, recipe, pk, status, values[7], values[5])
    end)
  end
  if kept and kept[1] ~= 'parked' and queue_key and kept[2] ~= queue_key then
    step('queue ' .. kept[2], function() write_fields(recipe, pk, {'queue_key'}, {kept[2]}) end)
  end
end

local function settle_twins()
  if not twin or is_leased or not queued or not (status == 'w' or status == 'd' or status == 'c') then return end
  step('double ' .. recipe.repr .. ':' .. twin, function()
    if kept then leave_one(kept, 0) end
    redis.call('HDEL', noted, ident)
    write_fields(recipe, pk, {'status', 'queued', 'cancel_reason'}, {'c', false, 'queued twice'})
    count_job(namespace, recipe, pk, 'c')
    note_end(namespace, recipe, pk, 'c', values[7], values[5])
  end)
end

-- Whom it waits for: each is to tell it, or it is told now.
local function settle_parent(parent)
  local parent_repr, parent_pk = split_ident(parent)
  local known = parent_repr and recipe_of(namespace, parent_repr)
  if not known or known.has_own_edges then return step('stranger ' .. parent) end
  local parent_key = known.key .. ':' .. parent_pk
  local found = redis.call('HMGET', parent_key .. ':hash', 'status', 'queued', 'follow_up')
  if found[1] and redis.call('ZSCORE', namespace .. ':followups', parent) then return end
  local ended = end_of(found[1], found[2])
  local waits_on = not ended or ended ~= 's' and policy_of(recipe, values[5]) == 'wait'
  if not found[1] or not waits_on then
    step('told ' .. parent, function()
      local is_removed = not found[1]
      if tell_child(namespace, recipe, pk, ident, {ident = parent, is_removed = is_removed}, is_removed and 'c' or ended) then
        tell_children(namespace, recipe, pk, 'c')
      end
    end)
  elseif redis.call('SISMEMBER', parent_key .. ':children', ident) == 0 or not is_told(known, found[3], 'c') then
    step('know ' .. parent, function()
      redis.call('SADD', parent_key .. ':children', ident)
      local letters = found[3] or ''
      if not is_told(known, letters, 'c') then redis.call('HSET', parent_key .. ':hash', 'follow_up', letters .. 'c') end
    end)
  end
end

local function settle_parents()
  if status ~= 'b' or recipe.has_own_edges or redis.call('SCARD', key .. ':waits_for') > MOST_PARENTS then return end
  local parents = redis.call('SMEMBERS', key .. ':waits_for')
  table.sort(parents)
  for _, parent in ipairs(parents) do settle_parent(parent) end
  if #parents == 0 then
    step('release ' .. (queue_key or 'none'), function()
      release_child(namespace, recipe, pk, ident, queue_key, delayed_until)
    end)
  end
end

if exists then
  settle_record()
  settle_twins()
  settle_parents()
end
if #steps == 0 then return {'FINE'} end
local text = table.concat(steps, '\n') .. '\n'
if plan ~= text then return {'PLAN', unpack(steps)} end
for _, action in ipairs(actions) do action() end
return {'DONE', unpack(changed)}
