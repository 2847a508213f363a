-- What the transitions share; the loader puts what a script uses of it in front.
--
-- Words: a *recipe* says what a model's fields mean (recipes.py); a *record* is a whole new instance, ready to be
-- written; a queue is known by its key prefix, `jobs:queue:3`; `namespace` is the one of the queue model.
-- Keys beside the models' own, all under the namespace:
--   jobs:models                  hash: class of a job -> recipe
--   jobs:leases                  sorted set: ident -> deadline by the clock of Redis
--   jobs:claims                  hash: ident -> token, and token -> ident; also `*` and the ident of a job that holds a place
--   jobs:workers                 sorted set: pk of the record of a worker -> until when it is believed to live
--   jobs:expiring                sorted set: ident of an ended job that is kept for a time of its own -> when that is over
--   jobs:followups               sorted set: ident of a job that has ended -> how far its children have been told
--   jobs:done:<worker>           string: the last end that this worker recorded; expires
--   jobs:ready:queue:<name>      sorted set: pk of a queue that may hold work -> its priority; '' -> infinity while the name is paused
--   jobs:paused                  hash: queue:<name> -> JSON: since when, why and by whom it is paused
--   jobs:due:queue:<name>        sorted set: pk of a queue -> when its first delayed job is due
--   jobs:queues:queue:<name>     hash: priority -> pk of the queue
--   jobs:doorbell:queue:<name>   list: one item for each thing that a waiting worker may want to look at
--   jobs:job:last_queued         hash: identifier -> pk of the job queued last, where `identifier` has no plain index, or
--                                hundreds of records
--   jobs:unique:<class>:<identifier>   string: pk of the job that has the identifier, as long as it is unique; expires
--   jobs:job:<pk>:events         channel: `status r` when a job begins that somebody waits for, `status s`, e or c at its end;
--                                `update {"percent":40,...}` when it says how far it has come
--   jobs:limits:jobs             hash: ident of a job with limits -> JSON: it is parked, called or held (see `park`), under which key
--   jobs:limits:due              sorted set: key of a limit under which jobs are parked -> when to look at them
--   jobs:limit:<key>:parked      sorted set: number and ident of a job that may not start yet -> its priority, negated
--   jobs:limit:<key>:held        sorted set: ident that holds a place -> when its lease was last seen
--   jobs:limit:<key>:rate        sorted set: token -> when its job started; '' -> the longest time that is looked back; expires
--   jobs:numbers:<minute>        hash: kind, task and queue, with blanks between -> how many (see `tally`) in this minute since 1970; expires
--   jobs:numbers:hour:<hour>     hash: the same of an hour (see roll_up.lua); expires
--   jobs:numbers:total           hash: the same of all minutes up to the one in its field `rolled`

local NOTHING = {}
local RERUN = '\0rerun'  -- after an identifier: of the job that is to run after the one that is queued
local MAX_RINGS = 100
local DONE_SECONDS = '3600'  -- a text, as the numbers in commands that are often given: Redis is slow at writing out a number
local MANY_RECORDS = 1000  -- of one identifier, and that are queued
local LOOK_SECONDS = 30  -- after which parked jobs are looked at again, even if nothing calls them
local MAX_LOOKS = 100  -- at parked jobs
local EPOCH = 100000000  -- any time in a sorted set of starts is later, any duration shorter
local LAST_SECOND = 253402300799  -- of the year 9999, the last one that dates are written for

local changed = {}  -- repr, pk, field, old, new: what indexes that no recipe describes have yet to learn; or repr, pk, '',
                    -- namespace, '': the job has ended, and has children that have yet to be told

-- Redis refuses whatever takes memory when it is full, but not to a script that has written something already: what runs
-- comes to its end, and what waits is worked off.
local function allow_when_full(namespace)
  redis.call('HDEL', namespace .. ':claims', '')
end

local moment  -- by the clock of Redis, once a call has asked: all that it does is done at one time
local function now()
  if not moment then
    local time = redis.call('TIME')
    moment = time[1] + time[2] / 1000000
  end
  return moment
end

-- A count in a record, which may hold anything.
local function count_of(text)
  local number = tonumber(text or '0') or 0
  if number ~= number or number < 0 or number > 1000000000 then return 0 end
  return math.floor(number)
end

local function next_count(text)
  return (not text or text == '0') and '1' or tostring(count_of(text) + 1)
end

local function score(number)
  return string.format('%.6f', number)
end

-- Days since 1970-01-01 of a date of the Gregorian calendar, and back.
local function days_of(year, month, day)
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local year_of_era = year - era * 400
  local day_of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5) + day - 1
  return era * 146097 + year_of_era * 365 + math.floor(year_of_era / 4) - math.floor(year_of_era / 100)
    + day_of_year - 719468
end

local function date_of(days)
  days = days + 719468
  local era = math.floor(days / 146097)
  local day_of_era = days - era * 146097
  local year_of_era = math.floor((day_of_era - math.floor(day_of_era / 1460) + math.floor(day_of_era / 36524)
    - math.floor(day_of_era / 146096)) / 365)
  local day_of_year = day_of_era - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local shifted = math.floor((5 * day_of_year + 2) / 153)
  local month = shifted < 10 and shifted + 3 or shifted - 9
  local year = year_of_era + era * 400
  return month <= 2 and year + 1 or year, month, day_of_year - math.floor((153 * shifted + 2) / 5) + 1
end

local function format_date(seconds)
  seconds = math.floor(seconds * 1000000 + 0.5) / 1000000  -- so that no fraction rounds up to the next day
  local days = math.floor(seconds / 86400)
  local micros = math.floor((seconds - days * 86400) * 1000000 + 0.5)
  local year, month, day = date_of(days)
  local text = string.format('%04d-%02d-%02d %02d:%02d:%02d', year, month, day, math.floor(micros / 3600000000),
    math.floor(micros / 60000000) % 60, math.floor(micros / 1000000) % 60)
  return micros % 1000000 == 0 and text or text .. string.format('.%06d', micros % 1000000)
end

local function parse_date(text)
  local year, month, day, hour, minute, second, rest =
    string.match(text or '', '^(%d%d%d%d)-(%d%d)-(%d%d)[ T](%d%d):(%d%d):(%d%d)(.*)$')
  if not year then return nil end
  local fraction = string.match(rest, '^%.%d+$')
  if rest ~= '' and not fraction then return nil end
  return days_of(tonumber(year), tonumber(month), tonumber(day)) * 86400
    + hour * 3600 + minute * 60 + second + tonumber('0' .. (fraction or ''))
end

local numbers = {}  -- what this call has to count: field -> how much

-- Count something, when the script has done its work. Kinds: `a` added, `q` requeued, `v` recovered, `c` canceled; those with
-- a time: `w` started, after such a wait; `s` and `e` succeeded and failed, after such a run (see `tally_time`).
-- `of`: the task and the queue, each with a blank before it.
local function tally(kind, of)
  local field = kind .. of
  numbers[field] = (numbers[field] or 0) + 1
end

-- Between two times of other days, or not in the form that `tally_time` reads; 0 if they make no sense.
local function micros_of_days(from, to)
-- (what scripts share)
  local first, last = parse_date(from), parse_date(to)
  return first and last and (last - first) * 1000000 or 0
end

-- Count something that took from one time to another, as records have them; `from` may be false, for no time. It is in the
-- bucket n if it took at most 2^n milliseconds, and more than half of that: 0 to 32. A number of a bucket is that of those
-- in it, times 10^10, and how long they took, in thousandths of 2^n milliseconds: so one command writes both.
-- Done for each job: so times are read digit by digit, as a text that is cut out of another one costs more.
local function tally_time(kind, of, from, to)
  local micros, bucket, took = 0, 0, 0
  if from then
    local byte = string.byte
    local y, _, mo1, mo2, _, d1, d2, _, h1, h2, _, m1, m2, _, s1, s2, dot, f1, f2, f3, f4, f5, f6 = byte(from, 4, 26)
    local Y, _, MO1, MO2, _, D1, D2, _, H1, H2, _, M1, M2, _, S1, S2, DOT, F1, F2, F3, F4, F5, F6 = byte(to, 4, 26)
    if f6 and F6 and dot == DOT and d2 == D2 and d1 == D1 and mo2 == MO2 and mo1 == MO1 and y == Y then
      micros = ((H1 - h1) * 36000 + (H2 - h2) * 3600 + (M1 - m1) * 600 + (M2 - m2) * 60 + (S1 - s1) * 10 + S2 - s2) * 1000000
        + (F1 - f1) * 100000 + (F2 - f2) * 10000 + (F3 - f3) * 1000 + (F4 - f4) * 100 + (F5 - f5) * 10 + F6 - f6
    else
      micros = micros_of_days(from, to)
    end
  end
  if micros > 0 then  -- else the clocks of two machines
    local fraction, exponent = math.frexp(micros / 1000)
    bucket = fraction == 0.5 and exponent - 1 or exponent
    if bucket < 0 then bucket = 0 elseif bucket > 32 then bucket = 32 end
    took = micros / 2 ^ bucket + 0.5
    took = took > 1000 and 1000 or took - took % 1
  end
  local ones = bucket % 10
  local digits = bucket < 10 and string.char(48 + ones) or string.char(48 + (bucket - ones) / 10, 48 + ones)
  local field = kind .. digits .. of
  numbers[field] = (numbers[field] or 0) + 10000000000 + took
end

-- A field is new in a hash of numbers: its first one says when it expires, and there are no more than so many; what comes
-- then is of the task and the queue `*`.
local function note_number(key, field, times, most, seconds)
  local length = redis.call('HLEN', key)
  if length == 1 and seconds then
    redis.call('EXPIRE', key, seconds)
  elseif length > most then
    redis.call('HDEL', key, field)
    redis.pcall('HINCRBY', key, string.match(field, '^%S+') .. ' * *', times)
  end
end

-- Write what was counted. What is of another type gets nothing, and so does a field that holds no number: whatever is there,
-- the script goes on.
local function write_numbers(namespace)
  local key
  for field, times in pairs(numbers) do
    key = key or namespace .. ':numbers:' .. string.format('%d', now() / 60)
    local ones = times % 10000000000
    local text = times == ones and string.format('%d', ones) or string.format('%d%010d', (times - ones) / 10000000000, ones)
    if redis.pcall('HINCRBY', key, field, text) == times then note_number(key, field, text, 1000, 93600) end  -- 26 hours
  end
  numbers = {}
end

-- `value`: of the field that names the task, if its class has one.
local function task_and_queue(recipe, value, name)
  return ' ' .. (recipe.task and value or recipe.repr) .. ' ' .. (name or '')
end

local function queue_name(queue)
  local name = queue and redis.pcall('HGET', queue .. ':hash', 'name')
  return type(name) == 'string' and name or ''
end

-- Count something of a job whose record says all that is needed, at once.
local function count_job(namespace, recipe, pk, kind)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'queue_key', recipe.task or 'queue_key')
  tally(kind, task_and_queue(recipe, values[2], queue_name(values[1])))
  write_numbers(namespace)
end

-- `mail` of `jobs:queue` -> `jobs:ready:queue:mail`
local function side(namespace, kind, queue_model, name)
  return namespace .. ':' .. kind .. ':' .. string.sub(queue_model, #namespace + 2) .. ':' .. name
end

local function split_ident(ident)
  return string.match(ident, '^([^:]+):(.+)$')
end

local recipes = {}
local function recipe_of(namespace, repr)
  if recipes[repr] == nil then
    local text = redis.call('HGET', namespace .. ':models', repr)
    local is_json, found = pcall(cjson.decode, text or 'null')
    local is_recipe = is_json and type(found) == 'table' and type(found.key) == 'string'
      and type(found.repr) == 'string' and type(found.indexes) == 'table'
    recipes[repr] = is_recipe and found or false
  end
  return recipes[repr]
end

-- `repr` is the class' own name, or another one that imports it: scripts go on under the name in the recipe.
local function register(namespace, repr, text, recipe)
  local models = namespace .. ':models'
  recipes[repr] = recipe or cjson.decode(text)
  if redis.call('HGET', models, repr) ~= text then redis.call('HSET', models, repr, text) end
  local own = recipes[repr].repr
  if own ~= repr and redis.call('HGET', models, own) ~= text then redis.call('HSET', models, own, text) end
end

-- Move one record from the index entries of its old value to those of its new one; false means no value.
local function reindex(recipe, pk, field, old, new)
  local indexes = recipe.indexes[field]
  for position = 1, indexes and #indexes or 0 do
    local index = indexes[position]
    local kind, key, separator = index[1], index[2], index[3]
    if kind == 'equal' then
      if old then redis.call('SREM', key .. old, pk) end
      if new then redis.call('SADD', key .. new, pk) end
    elseif kind == 'text' then
      if old then redis.call('ZREM', key, old .. separator .. pk) end
      if new then redis.call('ZADD', key, 0, new .. separator .. pk) end
    elseif kind == 'number' then
      if new then redis.call('ZADD', key, string.format('%.17g', tonumber(new) or 0), pk) else redis.call('ZREM', key, pk) end
    else
      for _, item in ipairs({recipe.repr, pk, field, old or '', new or ''}) do changed[#changed + 1] = item end
    end
  end
end

-- The key of an index that a change of a field could not be written to, because something of another type is there; or nil.
local function broken_index(recipe, field, old, new)
  for _, index in ipairs(recipe.indexes[field] or NOTHING) do
    local keys = index[1] == 'equal' and {old and index[2] .. old, new and index[2] .. new} or {index[2]}
    local wanted = index[1] == 'equal' and 'set' or 'zset'
    for _, key in pairs(keys) do
      local found = key and redis.call('TYPE', key).ok or 'none'
      if found ~= wanted and found ~= 'none' then return key end
    end
  end
  return nil
end

-- Write several fields of a record, hash and indexes; false deletes. `names` and `values` have the same length.
-- `known`: what they are, if the caller has just read it. What is a field of the user's own is left alone, where it may be.
local MAY_BE_OWN = {cancel_reason = 'has_own_cancel_reason', progress = 'has_own_progress',
  waiting_since = 'has_own_waiting_since'}
local function write_fields(recipe, pk, names, values, known)
  local hash = recipe.key .. ':' .. pk .. ':hash'
  local old = known or redis.call('HMGET', hash, unpack(names))
  local sets, deletes = {}, {}
  for position, name in ipairs(names) do
    local value = values[position]
    if value ~= old[position] and not (MAY_BE_OWN[name] and recipe[MAY_BE_OWN[name]]) then
      reindex(recipe, pk, name, old[position], value)
      if value then
        sets[#sets + 1] = name
        sets[#sets + 1] = value
      else
        deletes[#deletes + 1] = name
      end
    end
  end
  if #sets > 0 then redis.call('HSET', hash, unpack(sets)) end
  if #deletes > 0 then redis.call('HDEL', hash, unpack(deletes)) end
end

-- Which unique value of a record is taken already, or nil.
local function taken(record, model_key)
  local collection = (model_key or record.key or '') .. ':collection'
  if record.pk and redis.call('SISMEMBER', collection, record.pk) == 1 then return 'pk' end
  for _, unique in ipairs(record.unique or NOTHING) do
    local field, kind, key, value = unique[1], unique[2], unique[3], unique[4]
    local count
    if kind == 'equal' then
      count = redis.call('SCARD', key)
    elseif kind == 'text' then
      count = #redis.call('ZRANGEBYLEX', key, '[' .. value, '[' .. value .. '\255', 'LIMIT', 0, 1)
    else
      count = redis.call('ZCOUNT', key, value, value)
    end
    if count > 0 then return field end
  end
  return nil
end

local creating  -- the key of the model and the primary key of the record that is being written

-- Write a whole new record: primary key, hash, fields of other types, indexes. Ask `taken` before.
local function create(record)
  local pk = record.pk
  if not pk then
    repeat
      pk = tostring(redis.call('INCR', record.key .. ':max_pk'))
    until redis.call('SADD', record.key .. ':collection', pk) == 1
  else
    redis.call('SADD', record.key .. ':collection', pk)
  end
  creating = {record.key, pk}
  if #record.hash > 0 then redis.call('HSET', record.key .. ':' .. pk .. ':hash', unpack(record.hash)) end
  for position = 1, #record.sets do redis.call('SADD', record.sets[position], pk) end
  for _, command in ipairs(record.commands or NOTHING) do
    local arguments = {unpack(command, 3)}
    redis.call(command[1], record.key .. ':' .. pk .. ':' .. command[2], unpack(arguments))
  end
  for _, index in ipairs(record.scores or NOTHING) do redis.call('ZADD', index[1], index[2], index[3] .. pk) end
  return pk
end

-- Take back what was written of a record, when the rest of it could not be: there is no job that is in no place.
local function discard(model_key, sets)
  if not creating or creating[1] ~= model_key then return end
  local key = model_key .. ':' .. creating[2]
  redis.pcall('DEL', key .. ':hash', key .. ':parents', key .. ':waits_for')
  redis.pcall('SREM', model_key .. ':collection', creating[2])
  for position = 1, #sets do redis.pcall('SREM', sets[position], creating[2]) end
end

-- A recipe of which mostly what is given here is needed: the rest of it is decoded when somebody asks.
local function decoded_later(given, text)
  return setmetatable(given, {__index = function(recipe, name)
    setmetatable(recipe, nil)
    for part, value in pairs(cjson.decode(text)) do rawset(recipe, part, value) end
    return rawget(recipe, name)
  end})
end

-- Unlike `unpack`, for any number of items.
local function slice(list, first, last)
  local part = {}
  for position = first, last do part[position - first + 1] = list[position] end
  return part
end

local function set_of(list, first, last)
  local found = {}
  for position = first, last do found[list[position]] = true end
  return found
end

-- What an error that was caught says: Redis 7 raises tables, 6 texts.
local function error_text(found)
  return type(found) == 'table' and found.err or tostring(found)
end

local unusable  -- a key of a wrong type that kept `find_queue` from its answer

local function ask_for_queue(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    unusable = key
    return nil
  end
  return reply
end

-- The key prefix of the queue with this name and priority, or nil. The hash `queues` remembers what the indexes say.
local function find_queue(namespace, recipe, name, priority)
  local memory = side(namespace, 'queues', recipe.key, name)
  local known = ask_for_queue('HGET', memory, priority)
  if unusable then return nil end
  if known then
    local found = ask_for_queue('HMGET', recipe.key .. ':' .. known .. ':hash', 'name', 'priority')
    if unusable then return nil end
    if found[1] == name and found[2] == priority then return recipe.key .. ':' .. known end
    redis.call('HDEL', memory, priority)
  end
  local names = (recipe.indexes.name or {})[1]
  if not names or names[1] ~= 'equal' then return nil end
  local priorities = (recipe.indexes.priority or {})[1]
  local candidates
  if priorities and priorities[1] == 'equal' then
    candidates = ask_for_queue('SINTER', names[2] .. name, priorities[2] .. priority)
  else
    candidates = ask_for_queue('SMEMBERS', names[2] .. name)
  end
  if unusable then return nil end
  table.sort(candidates, function(a, b)
    local left, right = tonumber(a), tonumber(b)
    if left and right then return left < right end
    if left or right then return left ~= nil end
    return a < b
  end)
  for _, pk in ipairs(candidates) do
    local found = ask_for_queue('HGET', recipe.key .. ':' .. pk .. ':hash', 'priority')
    if unusable then return nil end
    if found == priority then
      redis.call('HSET', memory, priority, pk)
      return recipe.key .. ':' .. pk
    end
  end
  return nil
end

local function remember_queue(namespace, recipe, name, priority, pk)
  redis.call('HSET', side(namespace, 'queues', recipe.key, name), priority, pk)
  return recipe.key .. ':' .. pk
end

-- Wake those who wait for this queue name: `times` of them at most.
local function ring(namespace, queue_model, name, times)
  local doorbell = side(namespace, 'doorbell', queue_model, name)
  local length = redis.pcall('LLEN', doorbell)
  if type(length) == 'table' then  -- not a list: what is in it means nothing, so it goes
    redis.call('DEL', doorbell)
    length = 0
  end
  local room = MAX_RINGS - length
  for _ = 1, math.min(times or 1, room) do redis.call('RPUSH', doorbell, '1') end
end

-- Write down when the first delayed job of a queue is due.
local function note_due(namespace, queue_model, name, queue)
  local due, pk = side(namespace, 'due', queue_model, name), string.sub(queue, #queue_model + 2)
  local first = redis.call('ZRANGE', queue .. ':delayed', '0', '0', 'WITHSCORES')
  if first[1] then redis.call('ZADD', due, first[2], pk) else redis.call('ZREM', due, pk) end
end

local function note_ready(namespace, queue_model, name, queue, known)
  local priority = tonumber(known or redis.call('HGET', queue .. ':hash', 'priority') or 0) or 0
  if priority ~= priority then priority = 0 end
  redis.call('ZADD', side(namespace, 'ready', queue_model, name), score(priority), string.sub(queue, #queue_model + 2))
end

-- Do workers leave the queues of a name alone? The mark is the first entry of what is ready, so that a claim meets it anyway.
local PAUSED = ''
local function is_paused(namespace, queue_model, name)
  return type(redis.pcall('ZSCORE', side(namespace, 'ready', queue_model, name), PAUSED)) == 'string'
end

-- Put an ident in a queue: in its delayed set when `due` is given, else in its waiting list.
local function enter(namespace, queue_model, name, queue, ident, due, prepend)
  if due then
    redis.call('ZADD', queue .. ':delayed', score(due), ident)
    note_due(namespace, queue_model, name, queue)
  else
    redis.call(prepend and 'LPUSH' or 'RPUSH', queue .. ':waiting', ident)
    note_ready(namespace, queue_model, name, queue)
  end
  ring(namespace, queue_model, name)
end

-- The key that makes a write to a queue impossible, because something of another type is there; or nil. Without
-- `is_delayed`, the job may come to wait or to be delayed.
local function broken_key(namespace, queue_model, name, queue, is_delayed)
  if unusable then return unusable end
  local function is_broken(command, key) return type(redis.pcall(command, key)) == 'table' end
  local waiting, delayed = queue .. ':waiting', queue .. ':delayed'
  local ready, due = side(namespace, 'ready', queue_model, name), side(namespace, 'due', queue_model, name)
  if not is_delayed and is_broken('LLEN', waiting) then return waiting end
  if is_delayed ~= false and is_broken('ZCARD', delayed) then return delayed end
  if not is_delayed and is_broken('ZCARD', ready) then return ready end
  if is_delayed ~= false and is_broken('ZCARD', due) then return due end
  return nil
end

-- The limits of a job, by its field `run_options`: their key, `most` at the same time, and `rate`, {count, seconds}; nil for
-- none. What cannot be read says nothing.
local function limits_of(recipe, text)
  if not text or not string.find(text, '"limits"', 1, true) or recipe.has_own_run_options then return nil end
  local is_json, found = pcall(cjson.decode, text)
  local limits = is_json and type(found) == 'table' and found.limits
  if type(limits) ~= 'table' or type(limits.limit_key) ~= 'string' then return nil end
  local most, rate = tonumber(limits.max_concurrency), limits.rate_limit
  local is_rate = type(rate) == 'table' and (tonumber(rate[1]) or 0) >= 1 and tonumber(rate[2])
  return {key = limits.limit_key, most = most and most >= 1 and most or nil, rate = is_rate and rate or nil}
end

local kit  -- what is done with limits, made for the first job that has any

-- Functions, by their names.
local function limits_kit()
  if kit then return kit end
-- (what scripts share)
  local function of_limit(namespace, key, part)
    return namespace .. ':limit:' .. key .. ':' .. part
  end

  -- The key that makes it impossible to look at a limit, because something of another type is there; or nil.
  local function broken_limit(namespace, key)
    local wanted = {zset = {namespace .. ':limits:due', of_limit(namespace, key, 'parked'), of_limit(namespace, key, 'held'),
      of_limit(namespace, key, 'rate')}, hash = {namespace .. ':limits:jobs'}}
    for kind, names in pairs(wanted) do
      for _, name in ipairs(names) do
        local found = redis.call('TYPE', name).ok
        if found ~= kind and found ~= 'none' then return name end
      end
    end
    return nil
  end

  -- What is noted of a job with limits, or nil: its `state`, the `key`; where it is parked, `rank` and `number`.
  local function place_of(namespace, ident)
    local text = redis.call('HGET', namespace .. ':limits:jobs', ident)
    return text and cjson.decode(text) or nil
  end

  local function note_place(namespace, ident, place)
    redis.call('HSET', namespace .. ':limits:jobs', ident, cjson.encode(place))
  end

  local function parked_name(place, ident)
    return string.format('%016.0f', place.number) .. ' ' .. ident
  end

  -- Places end with leases. Should somebody have deleted those, look at some: at each once a second at most.
  local function drop_dead_holders(namespace, held, current)
    for _, ident in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', score(current - 1), 'LIMIT', 0, 10)) do
      if redis.call('HEXISTS', namespace .. ':claims', ident) == 1 then
        redis.call('ZADD', held, score(current), ident)
      else
        redis.call('ZREM', held, ident)
        redis.call('HDEL', namespace .. ':limits:jobs', ident)
      end
    end
  end

  -- When to ask again whether a job with these limits may start, after `others`; nil: it may now.
  local function refused_until(namespace, limits, others, current)
    local held = of_limit(namespace, limits.key, 'held')
    if limits.most and redis.call('ZCARD', held) + others >= limits.most then
      drop_dead_holders(namespace, held, current)
      if redis.call('ZCARD', held) + others >= limits.most then return current + LOOK_SECONDS end
    end
    if not limits.rate then return nil end
    local count, seconds = limits.rate[1], limits.rate[2]
    if others >= count then return current + math.min(seconds, LOOK_SECONDS) end
    local at = count - 1 - others
    local start = redis.call('ZREVRANGE', of_limit(namespace, limits.key, 'rate'), at, at, 'WITHSCORES')
    local free_at = start[1] and tonumber(start[2]) + seconds
    return free_at and free_at > current and free_at or nil
  end

  -- A job that is leased by now starts: it holds a place until its lease ends, and its start counts.
  local function take_place(namespace, ident, token, limits, current)
    if limits.rate then
      local starts = of_limit(namespace, limits.key, 'rate')
      redis.call('ZADD', starts, 'GT', limits.rate[2], '')
      redis.call('ZADD', starts, score(current), token)
      local longest = tonumber(redis.call('ZSCORE', starts, ''))
      for _, old in ipairs(redis.call('ZRANGEBYSCORE', starts, EPOCH, score(current - longest), 'LIMIT', 0, 10)) do
        redis.call('ZREM', starts, old)
      end
      redis.call('PEXPIRE', starts, math.ceil(longest * 1000))
    end
    if limits.most then
      redis.call('ZADD', of_limit(namespace, limits.key, 'held'), score(current), ident)
      redis.call('HSET', namespace .. ':claims', '*' .. ident, '1')
      note_place(namespace, ident, {state = 'held', key = limits.key})
    else
      redis.call('HDEL', namespace .. ':limits:jobs', ident)
    end
  end

  -- Put a job that may not start yet aside, behind those of its priority that were put there before; one that was called comes
  -- where it was. It is *parked* until `call_parked` moves it to the head of its waiting list; then it is *called*, until it
  -- starts: *held*, if it takes a place.
  local function park(namespace, ident, queue, limits, current, look_at)
    local parked = of_limit(namespace, limits.key, 'parked')
    local place = place_of(namespace, ident) or {}
    local priority = tonumber(redis.call('HGET', queue .. ':hash', 'priority') or 0) or 0
    local rank = score(priority == priority and -priority or 0)
    if not place.number then
      local last = redis.call('ZREVRANGEBYSCORE', parked, rank, rank, 'LIMIT', 0, 1)[1]
      place.number = math.max(math.floor(current * 1000000), last and tonumber(string.match(last, '^%d+')) + 1 or 0)
    end
    local text = string.format('%.0f', place.number)
    redis.call('ZADD', parked, rank, parked_name(place, ident))
    note_place(namespace, ident, {state = 'parked', key = limits.key, number = text, queue = queue, limits = limits})
    redis.call('ZADD', namespace .. ':limits:due', 'LT', score(look_at), limits.key)
  end

  -- What is known of the queue that a parked job goes back to; nil when it was deleted.
  local function home_of(namespace, place)
    local queue_model = string.match(place.queue, '^(.*):[^:]*$')
    local name = queue_model and redis.call('HGET', place.queue .. ':hash', 'name')
    if not name then return nil end
    return {queue_model = queue_model, name = name, is_paused = is_paused(namespace, queue_model, name)}
  end

  local function call_to_waiting(namespace, ident, place, home)
    redis.call('ZREM', of_limit(namespace, place.key, 'parked'), parked_name(place, ident))
    note_place(namespace, ident, {state = 'called', key = place.key, number = place.number})
    enter(namespace, home.queue_model, home.name, place.queue, ident, nil, true)
  end

  -- Move the first jobs that are parked under a key, and may start now, to the heads of their waiting lists: `most` of them.
  -- What was parked for a queue that is deleted goes with it. Those of a paused queue start nowhere: they go where they would
  -- wait for that to end, and take no place of others. Answers how many may start, and when to look at the others.
  local function call_parked(namespace, key, most)
    local parked, current = of_limit(namespace, key, 'parked'), now()
    local called, starting, look_at = {}, 0, nil
    local homes, refusals = {}, {}  -- by queue; by limits: with these, all that come later are refused, too
    for _, entry in ipairs(redis.call('ZRANGE', parked, 0, MAX_LOOKS - 1)) do
      if starting == most then
        look_at = current
        break
      end
      local ident = string.match(entry, '^%d+ (.*)$')
      local place = place_of(namespace, ident)
      local home = place and (homes[place.queue] or home_of(namespace, place))
      local refused
      if home then
        homes[place.queue] = home
        local wanted = cjson.encode({place.limits.most or 0, place.limits.rate or 0})
        if not home.is_paused then refused = refusals[wanted] or refused_until(namespace, place.limits, starting, current) end
        refusals[wanted] = refusals[wanted] or refused
        if not refused and broken_key(namespace, home.queue_model, home.name, place.queue, false) then
          refused = current + LOOK_SECONDS
        end
      end
      if refused then
        look_at = math.min(look_at or refused, refused)
      elseif home then
        called[#called + 1] = {ident, place, home}
        if not home.is_paused then starting = starting + 1 end
      else
        redis.call('ZREM', parked, entry)
        redis.call('HDEL', namespace .. ':limits:jobs', ident)
      end
    end
    for position = #called, 1, -1 do call_to_waiting(namespace, unpack(called[position])) end
    if redis.call('EXISTS', parked) == 0 then redis.call('ZREM', namespace .. ':limits:due', key) end
    return starting, look_at or current + LOOK_SECONDS
  end

  -- Look at some keys with parked jobs; answers how many may start.
  local function call_keys(namespace, keys)
    local due, current, found = namespace .. ':limits:due', now(), 0
    for _, key in ipairs(keys) do
      if found >= MAX_LOOKS then break end
      local is_done, count, look_at = pcall(call_parked, namespace, key, MAX_LOOKS)
      redis.call('ZADD', due, 'XX', score(is_done and look_at or current + LOOK_SECONDS), key)
      found = found + (is_done and count or 0)
    end
    return found
  end

  -- A job that is parked, or was called, leaves that. Answers whether it was parked.
  local function leave_parking(namespace, ident)
    local place = place_of(namespace, ident)
    if not place or place.state == 'held' then return false end
    redis.call('HDEL', namespace .. ':limits:jobs', ident)
    if place.state == 'called' then
      pcall(call_parked, namespace, place.key, 1)
      return false
    end
    local parked = of_limit(namespace, place.key, 'parked')
    redis.call('ZREM', parked, parked_name(place, ident))
    if redis.call('EXISTS', parked) == 0 then redis.call('ZREM', namespace .. ':limits:due', place.key) end
    return true
  end

  -- The limits of a job that is parked, or was called, are others by now: the next claim looks at them. It keeps its turn if
  -- the key is the same.
  local function look_anew(namespace, ident, limits)
    local place = place_of(namespace, ident)
    if not place or place.state == 'held' then return end
    if place.state == 'parked' then
      local home = home_of(namespace, place)
      if not home or broken_key(namespace, home.queue_model, home.name, place.queue, false) then return end
      call_to_waiting(namespace, ident, place, home)
    end
    if not limits or limits.key ~= place.key then leave_parking(namespace, ident) end
  end

  -- The lease of a job that held a place ends: the next one may have it. One that `waits` again, at the head of its list, is
  -- that itself.
  local function free_place(namespace, ident, waits)
    local place = place_of(namespace, ident)
    if not place or place.state ~= 'held' then return end
    redis.call('ZREM', of_limit(namespace, place.key, 'held'), ident)
    if waits then
      note_place(namespace, ident, {state = 'called', key = place.key, number = 0})
    else
      redis.call('HDEL', namespace .. ':limits:jobs', ident)
      call_parked(namespace, place.key, 1)
    end
  end

  kit = {broken_limit = broken_limit, refused_until = refused_until, take_place = take_place, park = park,
    call_keys = call_keys, leave_parking = leave_parking, look_anew = look_anew, free_place = free_place}
  return kit
end

-- Look at the parked jobs whose time has come; answers how many may start.
local function call_due(namespace)
  local keys = redis.pcall('ZRANGEBYSCORE', namespace .. ':limits:due', '-inf', score(now()), 'LIMIT', '0', MAX_LOOKS)
  return keys[1] and limits_kit().call_keys(namespace, keys) or 0
end

-- When to look at parked jobs next, or nil.
local function next_look(namespace)
  local first = redis.pcall('ZRANGE', namespace .. ':limits:due', '0', '0', 'WITHSCORES')
  return first[2] and tonumber(first[2])
end

-- Seconds until the first delayed job of some names is due, or a parked one may start, as text; '' for neither. `ask` is as
-- redis.pcall, or answers nil for a key of a wrong type.
local function next_due(namespace, queue_model, names, ask)
  local earliest
  for position = 1, #names do
    local found = ask('ZRANGE', side(namespace, 'due', queue_model, names[position]), '0', '0', 'WITHSCORES') or NOTHING
    if found[1] and (not earliest or tonumber(found[2]) < earliest) then earliest = tonumber(found[2]) end
  end
  local look_at = next_look(namespace)
  if look_at and (not earliest or look_at < earliest) then earliest = look_at end
  return earliest and score(earliest - now()) or ''
end

-- Is a job parked, called or held? Something else under the key knows nothing of it.
local function is_noted_with_limits(namespace, ident)
  return redis.pcall('HEXISTS', namespace .. ':limits:jobs', ident) == 1
end

-- A job no longer waits for its start: it is moved, canceled or gone. Answers whether it was parked.
local function stop_waiting(namespace, ident)
  return is_noted_with_limits(namespace, ident) and limits_kit().leave_parking(namespace, ident)
end

-- What is of another type holds no ident. With `is_one` it is there once at most, and looked for near the start and then from
-- the end of the list: who acts on many jobs, in their order or the other way round, finds each at once.
local function leave(queue, ident, is_one)
  local is_near = is_one and type(redis.pcall('LPOS', queue .. ':waiting', ident, 'MAXLEN', 100)) == 'number'
  local waited, delayed = redis.pcall('LREM', queue .. ':waiting', is_near and 1 or is_one and -1 or 0, ident), redis.pcall('ZREM', queue .. ':delayed', ident)
  return (tonumber(waited) or 0) + (tonumber(delayed) or 0)
end

-- Take an ident out of wherever it waits, and say whether it was there. Jobs of version 2 do not say where: then look at
-- the queues of their priority, then at all of them.
local function leave_anywhere(namespace, queue_recipe, recipe, pk, ident, is_one)
  if stop_waiting(namespace, ident) then return true end
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'queue_key', 'priority', 'queued', 'status')
  if values[1] and leave(values[1], ident, is_one) > 0 then return true end
  if not values[3] and values[4] ~= 'w' and values[4] ~= 'd' then return false end
  local priorities = (queue_recipe.indexes.priority or {})[1]
  if priorities and priorities[1] == 'equal' then
    for _, queue_pk in ipairs(redis.call('SMEMBERS', priorities[2] .. (values[2] or '0'))) do
      if leave(queue_recipe.key .. ':' .. queue_pk, ident, is_one) > 0 then return true end
    end
  end
  for _, queue_pk in ipairs(redis.call('SMEMBERS', queue_recipe.key .. ':collection')) do
    if leave(queue_recipe.key .. ':' .. queue_pk, ident, is_one) > 0 then return true end
  end
  return false
end

-- From when on a job must not be begun, by its field `run_options`; nil for never. What cannot be read says nothing.
local function expiry_of(recipe, text)
  if not text or not string.find(text, '"expires"', 1, true) or recipe.has_own_run_options then return nil end
  local is_json, found = pcall(cjson.decode, text)
  local expires = is_json and type(found) == 'table' and found.expires
  return type(expires) == 'number' and expires or nil
end

-- A job begins anew: an expiry that is past is not meant for that.
local function forget_past_expiry(recipe, pk)
  local text = redis.call('HGET', recipe.key .. ':' .. pk .. ':hash', 'run_options')
  local expires = expiry_of(recipe, text)
  if not expires or expires > now() then return end
  local rest = string.gsub(string.gsub(text, '"expires":[^,}]*,?', '', 1), ',}$', '}')
  write_fields(recipe, pk, {'run_options'}, {rest ~= '{}' and rest})
end

-- Tell whoever listens to a job what has become of it; whether anybody does, or may, is not ours to know.
local function publish(recipe, pk, message)
  redis.pcall('PUBLISH', recipe.key .. ':' .. pk .. ':events', message)
end

local function is_told(recipe, follow_up, letter)
  return follow_up and not recipe.has_own_follow_up and string.find(follow_up, letter, 1, true)
end

-- Note that a job runs now. `follow_up` is what its field says, here and below.
local function note_begin(recipe, pk, follow_up)
  if is_told(recipe, follow_up, 'w') then publish(recipe, pk, 'status r') end
end

local function take_lease(namespace, ident, token, deadline)
  redis.call('ZADD', namespace .. ':leases', score(deadline), ident)
  redis.call('HSET', namespace .. ':claims', ident, token, token, ident)
end

-- `waits`: the job is at the head of its waiting list again.
local function drop_lease(namespace, ident, token, waits)
  redis.call('ZREM', namespace .. ':leases', ident)
  local removed = redis.call('HDEL', namespace .. ':claims', ident, token, '*' .. ident)
  if removed > 2 then pcall(limits_kit().free_place, namespace, ident, waits) end  -- whatever is under the keys of its limit, its lease is over
end

local MANY_CHILDREN = 500  -- that are told of the end of their parents in one call

local function policy_of(recipe, text)
  local is_ours = text and not recipe.has_own_run_options
  return is_ours and string.match(text, '"if_parent_fails":"(%l+)"') or 'cancel'
end

-- Note that a job waits from now on, unless it has since it was added.
local function note_waiting(recipe, pk)
  write_fields(recipe, pk, {'waiting_since'}, {format_date(now())})
end

-- Put a job that waits for no other any more where it belongs. What keeps it from its queue is for `recover` to see.
local function release_child(namespace, recipe, pk, ident, queue, delayed_until)
  local due = parse_date(delayed_until)
  if due and due <= now() then due = nil end
  local owner = string.match(queue or '', '^(.*):[^:]*$')
  local name = owner and redis.pcall('HGET', queue .. ':hash', 'name')
  local is_usable = type(name) == 'string' and not broken_key(namespace, owner, name, queue, due and true or false)
  write_fields(recipe, pk, {'status', 'delayed_until'}, {due and 'd' or 'w', due and delayed_until},
    {'b', delayed_until})
  if not due then note_waiting(recipe, pk) end
  if is_usable then
    enter(namespace, owner, name, queue, ident, due)
  else
    take_lease(namespace, ident, 'released/' .. ident, now())
  end
end

-- Note until when the record of a job that has ended is kept, if it or its class says so.
local function note_expiring(namespace, recipe, pk, status, run_options)
  local name = status == 's' and 'keep_success' or 'keep_errors'
  local seconds = recipe[name]
  if run_options and not recipe.has_own_run_options and string.find(run_options, '"' .. name .. '"', 1, true) then
    local is_json, found = pcall(cjson.decode, run_options)
    local own = is_json and type(found) == 'table' and found[name]
    if type(own) == 'number' then seconds = own end
  end
  if seconds then redis.pcall('ZADD', namespace .. ':expiring', score(now() + seconds), recipe.repr .. ':' .. pk) end
end

-- A job that waits for others is canceled; answers whether it has children, who are to be told.
local function cancel_child(namespace, recipe, pk, values, reason)
  write_fields(recipe, pk, {'status', 'queued', 'cancel_reason'}, {'c', false, reason})
  redis.call('DEL', recipe.key .. ':' .. pk .. ':waits_for')
  count_job(namespace, recipe, pk, 'c')
  note_expiring(namespace, recipe, pk, 'c', values.run_options)
  if is_told(recipe, values.follow_up, 'w') then publish(recipe, pk, 'status c') end
  return is_told(recipe, values.follow_up, 'c')
end

-- Tell a job that one of those that it waits for has ended, `parent` (see tell_page), with this status. Answers whether it is
-- canceled, and has children itself.
local function tell_child(namespace, recipe, pk, ident, parent, status)
  local key = recipe.key .. ':' .. pk
  local values = redis.call('HMGET', key .. ':hash', 'status', 'queue_key', 'delayed_until', 'run_options', 'queued',
    'follow_up')
  local known = {follow_up = values[6], run_options = values[4]}
  local policy = status == 's' and 'run' or policy_of(recipe, values[4])
  if policy == 'wait' and parent.is_removed then policy = 'cancel' end  -- nobody can requeue it any more
  if values[1] == 'c' and values[5] and redis.call('EXISTS', key .. ':waits_for') == 1 then
    return cancel_child(namespace, recipe, pk, known, 'canceled')  -- somebody wrote CANCELED
  end
  if values[1] ~= 'b' or policy == 'wait' then return false end
  if policy == 'cancel' then return cancel_child(namespace, recipe, pk, known, 'parent failed: ' .. parent.ident) end
  redis.call('SREM', key .. ':waits_for', parent.ident)
  if redis.call('EXISTS', key .. ':waits_for') == 0 then
    release_child(namespace, recipe, pk, ident, values[2], values[3])
  end
  return false
end

-- How a job has ended, if it has: 's', 'e' or 'c'. One that has been deleted was told of then.
local function end_of(status, queued)
  return (status == 's' or (status == 'e' or status == 'c') and not queued) and status or nil
end

-- Tell some children of a job; `job`: its ident, the `cursor` of its children, the `status` that it ended in, if known, and
-- `is_removed`, if its record is about to go.
-- Answers how many were looked at, and puts those that are to be told next behind `jobs`.
local function tell_page(namespace, job, jobs, unknown)
  local repr, pk = split_ident(job.ident)
  local recipe = repr and recipe_of(namespace, repr)
  if not recipe then
    unknown[#unknown + 1], job.is_stuck = job.ident, true
    return 0
  end
  local key = recipe.key .. ':' .. pk
  local status = job.status or end_of(unpack(redis.call('HMGET', key .. ':hash', 'status', 'queued'), 1, 2))
  if not status then
    job.is_done = true  -- it runs again: its end will tell
    return 0
  end
  local page = redis.pcall('SSCAN', key .. ':children', string.format('%.0f', job.cursor), 'COUNT', MANY_CHILDREN)
  if page.err then  -- not a set: it names no job
    job.is_done = true
    return 0
  end
  for _, child in ipairs(page[2]) do
    local child_repr, child_pk = split_ident(child)
    local child_recipe = child_repr and recipe_of(namespace, child_repr)
    if child_recipe then
      local is_told_well, is_parent = pcall(tell_child, namespace, child_recipe, child_pk, child, job, status)
      if not is_told_well then job.is_stuck = true end
      if is_told_well and is_parent then jobs[#jobs + 1] = {ident = child, cursor = 0, status = 'c'} end
    else
      unknown[#unknown + 1], job.is_stuck = child, true
    end
  end
  if not job.is_stuck then
    job.cursor = tonumber(page[1])
    job.is_done = job.cursor == 0
  end
  return #page[2]
end

-- Tell the children of some jobs, and the children of those that this cancels, as many as one call may. What is left is
-- noted. Answers whether more can be done now.
local function tell_on(namespace, jobs, unknown)
  local followups, position, told, has_more = namespace .. ':followups', 1, 0, false
  while jobs[position] do
    local job = jobs[position]
    while told < MANY_CHILDREN and not job.is_done and not job.is_stuck do
      told = told + tell_page(namespace, job, jobs, unknown)
    end
    if not job.is_done then
      redis.call('ZADD', followups, job.is_stuck and -job.cursor - 1 or job.cursor, job.ident)
      has_more = has_more or not job.is_stuck
    elseif job.is_noted then
      redis.call('ZREM', followups, job.ident)
    end
    position = position + 1
  end
  return has_more
end

-- Who still waits for a job is told that there is nothing to wait for; false when there are too many of them for one call.
local function tell_waiting(namespace, ident, job)
  local values = redis.call('HMGET', job.key .. ':' .. job.pk .. ':hash', 'follow_up', 'status')
  if not is_told({}, values[1], 'c') then return true end
  local status = values[2] == 's' and 's' or 'c'
  return not tell_on(namespace, {{ident = ident, cursor = 0, status = status, is_removed = true}}, {})
end

-- Has a job that ended well children that have yet to run, and may want its result? Also answers how many were looked at.
local function has_open_children(namespace, job)
  local key, looked = job.key .. ':' .. job.pk, 0
  local values = redis.call('HMGET', key .. ':hash', 'follow_up', 'status')
  if values[2] ~= 's' or not is_told({}, values[1], 'c') then return false, 0 end
  for _, child in ipairs(redis.pcall('SMEMBERS', key .. ':children')) do
    local repr, pk = split_ident(child)
    local recipe = repr and recipe_of(namespace, repr)
    local found = recipe and redis.pcall('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued') or NOTHING
    looked = looked + 1
    if found[1] and not end_of(found[1], found[2]) then return true, looked end
  end
  return false, looked
end

-- Go on with the jobs that wait for one that has ended: 's', 'e' or 'c'. If they are too many for one call, the caller is asked
-- for `follow_up`; should it never do so, a worker that looks at what is noted does.
local function tell_children(namespace, recipe, pk, status)
  local job = {ident = recipe.repr .. ':' .. pk, cursor = 0, status = status}
  if tell_on(namespace, {job}, {}) then
    for _, item in ipairs({recipe.repr, pk, '', namespace, ''}) do changed[#changed + 1] = item end
  end
end

-- Tell those who are to know that a job has ended for good: in SUCCESS, in ERROR and not to be requeued, or CANCELED
-- and in no place; another status, or none, is no end. It is written by then. For some ends this is called twice.
-- `run_options`: what this field says, nil if it was not read.
local function note_end(namespace, recipe, pk, status, follow_up, run_options)
  if status ~= 's' and status ~= 'e' and status ~= 'c' then return end
  if run_options == nil then run_options = redis.call('HGET', recipe.key .. ':' .. pk .. ':hash', 'run_options') end
  note_expiring(namespace, recipe, pk, status, run_options)
  if is_told(recipe, follow_up, 'w') then publish(recipe, pk, 'status ' .. status) end
  if is_told(recipe, follow_up, 'c') then tell_children(namespace, recipe, pk, status) end
end

-- Remove a record, as recipes.removal describes it.
local function remove_record(record)
  for _, command in ipairs(record.index) do redis.pcall(unpack(command)) end  -- under a key of another type is no entry
  local keys = {record.key .. ':' .. record.pk .. ':hash'}
  for _, name in ipairs(record.keys) do keys[#keys + 1] = record.key .. ':' .. record.pk .. ':' .. name end
  redis.call('DEL', unpack(keys))
  redis.call('SREM', record.key .. ':collection', record.pk)
end

-- Is a job that had ended in the books again?
local function is_queued_or_held(namespace, ident, hash)
  return redis.call('HEXISTS', namespace .. ':claims', ident) == 1 or redis.call('HEXISTS', hash, 'queued') == 1
end

-- Is a job as it was read? `seen`: '' when nobody asks, else its status, '=' and its `end`.
local function is_as_read(hash, read)
  if read == '' then return true end
  local values = redis.call('HMGET', hash, 'status', 'end')
  return (values[1] or '') .. '=' .. (values[2] or '') == read
end

-- The first of some fields that has another value than when it was read, or nil: they are in ARGV from `first` on, each
-- followed by '=' and the value, or by ''.
local function changed_since_read(hash, first, fields)
  for position = first, first + 2 * fields - 1, 2 do
    local value = redis.call('HGET', hash, ARGV[position])
    if (value and '=' .. value or '') ~= ARGV[position + 1] then return ARGV[position] end
  end
end

local MOST_QUEUES = 100  -- of one name, whose histories may have a job

-- The queues where a job may have failed before: its last one, then those of the same name with other priorities.
local function queues_of(namespace, queue)
  local model, pk = string.match(queue, '^(.*):([^:]*)$')
  local name = redis.call('HGET', queue .. ':hash', 'name')
  local found = {queue}
  for _, other in ipairs(name and redis.call('HVALS', side(namespace, 'queues', model, name)) or {}) do
    if other ~= pk and #found < MOST_QUEUES then found[#found + 1] = model .. ':' .. other end
  end
  return found
end

local function forget_queued(job)
  local last = job.key .. ':last_queued'
  local is_known = type(job.identifier) == 'string'  -- not null, for a record without one
  for _, name in ipairs(is_known and {job.identifier, job.identifier .. RERUN} or NOTHING) do
    if redis.call('HGET', last, name) == job.pk then redis.call('HDEL', last, name) end
  end
end

local function equal_index(recipe, field)
  local index = (recipe.indexes[field] or {})[1]
  return index and index[1] == 'equal' and index[2]
end

-- The lower one of two primary keys, of which one may be nil.
local function lower(found, pk)
  return (not found or (tonumber(pk) or 0) < (tonumber(found) or 0)) and pk or found
end

-- The primary key of the job with this identifier that is queued, or nil; and of the one that is BLOCKED to run after it,
-- if there is one. Where the identifier has no plain index, those that a script queued last are remembered; so they are
-- where both sets are too large to be intersected each time.
local function find_queued(recipe, identifier)
  local by_identifier, by_queued = equal_index(recipe, 'identifier'), equal_index(recipe, 'queued')
  local are_large = by_identifier and by_queued and redis.call('SCARD', by_identifier .. identifier) > MANY_RECORDS
    and redis.call('SCARD', by_queued .. '1') > MANY_RECORDS
  local last = (not by_identifier or are_large)
    and redis.call('HMGET', recipe.key .. ':last_queued', identifier, identifier .. RERUN)
  local candidates
  if last and (last[1] or last[2]) or not by_identifier then
    candidates = {last[1] or last[2] or nil, last[1] and last[2] or nil}
  elseif by_queued then
    candidates = redis.call('SINTER', by_identifier .. identifier, by_queued .. '1')
  else
    candidates = redis.call('SMEMBERS', by_identifier .. identifier)
  end
  local found, blocked
  for position = 1, #candidates do
    local pk = candidates[position]
    local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'queued', 'identifier', 'status')
    if values[1] == '1' and values[2] == identifier then
      if values[3] == 'b' then blocked = lower(blocked, pk) else found = lower(found, pk) end
    end
  end
  return found or blocked, found and blocked
end

-- Half as many as are needed for this to be asked for: so it is right by then.
local function note_queued(recipe, identifier, pk, is_rerun)
  local by_identifier = equal_index(recipe, 'identifier')
  if not by_identifier or redis.call('SCARD', by_identifier .. identifier) > MANY_RECORDS / 2 then
    redis.call('HSET', recipe.key .. ':last_queued', is_rerun and identifier .. RERUN or identifier, pk)
  end
end

-- Make an end of a queued job that has expired, and that no worker has come to yet: it must not stand for another one.
local function end_expired(namespace, queue_recipe, recipe, pk)
  local ident = recipe.repr .. ':' .. pk
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'run_options', 'follow_up')
  local expires = (values[1] == 'w' or values[1] == 'd') and expiry_of(recipe, values[2])
  if not expires or expires > now() or redis.call('HEXISTS', namespace .. ':claims', ident) == 1 then return false end
  leave_anywhere(namespace, queue_recipe, recipe, pk, ident)
  write_fields(recipe, pk, {'status', 'queued', 'cancel_reason'}, {'c', false, 'expired'})
  count_job(namespace, recipe, pk, 'c')
  note_end(namespace, recipe, pk, 'c', values[3], values[2])
  return true
end

-- As `find_queued`, once those that have expired have been ended.
local function live_queued(namespace, queue_recipe, recipe, identifier)
  local found, rerun = find_queued(recipe, identifier)
  if found and end_expired(namespace, queue_recipe, recipe, found) then
    found, rerun = rerun and not end_expired(namespace, queue_recipe, recipe, rerun) and rerun or nil, nil
  end
  return found, rerun
end

-- Another job that is queued under the identifier of this one, or nil; else this one is about to be: remember it.
local function rival_of(namespace, queue_recipe, recipe, pk)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'identifier', 'queued')
  if not values[1] or values[2] == '1' then return nil end
  local found = live_queued(namespace, queue_recipe, recipe, values[1])
  if found and found ~= pk then return found end
  note_queued(recipe, values[1], pk)
  return nil
end

-- What jobs are added by: their class, and the queue by its name and priority.
local function way_to(namespace, repr, key, recipe_text, queue_model, queue_recipe_text, name, priority, queue_record)
  return {namespace = namespace, repr = repr, recipe_text = recipe_text, queue_model = queue_model, name = name,
    priority = priority, queue_record = queue_record, recipe = decoded_later({key = key, repr = repr}, recipe_text),
    queue_recipe = decoded_later({key = queue_model}, queue_recipe_text)}
end

-- The queue for a job, or nil and the reply to give: a new queue is made when it is the one that the caller asked for.
local function queue_for(way, priority, due)
  local queue = find_queue(way.namespace, way.queue_recipe, way.name, priority)
  local wanted = queue or way.queue_model .. ':0'
  local broken = broken_key(way.namespace, way.queue_model, way.name, wanted, due and true or false)
  if broken then return nil, {'BROKEN', broken} end
  if queue then return queue end
  if priority ~= way.priority or way.queue_record == 'null' then return nil, {'NO_QUEUE', priority} end
  local pk = create(cjson.decode(way.queue_record))
  return remember_queue(way.namespace, way.queue_recipe, way.name, priority, pk)
end

local function put_added(way, job, ident, queue)
  register(way.namespace, way.repr, way.recipe_text, way.recipe)
  if job.token ~= '' then
    take_lease(way.namespace, ident, job.token, now() + job.lease_seconds)
  else
    enter(way.namespace, way.queue_model, way.name, queue, ident, job.due, job.prepend)
  end
end

local function text_of(texts, field)
  for position = 1, #texts, 2 do
    if texts[position] == field then return texts[position + 1] end
  end
end

local function raise_or_move(way, job, pk)
  local recipe, ident = way.recipe, way.repr .. ':' .. pk
  local hash = recipe.key .. ':' .. pk .. ':hash'
  if job.token ~= '' and redis.call('HGET', way.namespace .. ':claims', ident) == job.token then  -- a repeated call
    local is_new = redis.call('HGET', hash, 'added') == text_of(job.texts, 'added')
    return {is_new and 'NEW' or 'MOVED', pk}
  end
  local values = redis.call('HMGET', hash, 'status', 'priority')
  local is_higher = tonumber(way.priority) > (tonumber(values[2] or '0') or 0)
  local is_fixed = values[1] == 'r' or values[1] == 'b' or redis.call('HEXISTS', way.namespace .. ':claims', ident) == 1
  if is_fixed or not (is_higher or job.prepend) then return {'EXISTING', pk} end
  local wanted = is_higher and way.priority or values[2] or '0'
  local queue, refusal = queue_for(way, wanted, job.due)
  if not queue then return refusal end
  leave_anywhere(way.namespace, way.queue_recipe, recipe, pk, ident)
  write_fields(recipe, pk, {'status', 'queued', 'priority', 'delayed_until', 'queue_key', 'cancel_reason'},
    {job.due and 'd' or 'w', '1', wanted, job.due and format_date(job.due) or false, queue, false})
  if values[1] == 'd' and not job.due then note_waiting(recipe, pk) end
  put_added(way, job, ident, queue)
  return {'MOVED', pk, unpack(changed)}
end

local seen = {}  -- ident -> what is known of a job that new ones come after

local function see_parent(namespace, ident)
  if not seen[ident] then
    local repr, pk = split_ident(ident)
    local recipe = repr and recipe_of(namespace, repr)
    local values = recipe and redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued', 'follow_up')
    if not recipe or not values[1] or recipe.has_own_edges then return nil end
    seen[ident] = {ident = recipe.repr .. ':' .. pk, key = recipe.key .. ':' .. pk, follow_up = values[3] or '',
      ended = end_of(values[1], values[2])}
  end
  return seen[ident]
end

-- How a new job stands: its parents, those that it waits for, and one that has failed and so keeps it from running. Or nil, and
-- the ident of a parent that is none.
local function standing_of(namespace, idents, policy)
  local found = {parents = {}, waits_for = {}}
  for position, ident in ipairs(idents) do
    local parent = see_parent(namespace, ident)
    if not parent then return nil, ident end
    found.parents[position] = parent
    if (parent.ended == 'e' or parent.ended == 'c') and policy == 'cancel' then
      found.failed = found.failed or parent.ident
    elseif not parent.ended or parent.ended ~= 's' and policy == 'wait' then
      found.waits_for[#found.waits_for + 1] = parent.ident
    end
  end
  found.is_free = not found.failed and #found.waits_for == 0
  return found
end

local function add_all(key, members)
  for first = 1, #members, 1000 do
    redis.call('SADD', key, unpack(members, first, math.min(first + 999, #members)))
  end
end

-- Write who comes after whom, of a new job. `children`: lists by key of a set, where these are to be collected, not written.
local function write_edges(key, ident, standing, children)
  local parents = {}
  for position, parent in ipairs(standing.parents) do
    parents[position] = parent.ident
    if children then
      local list = children[parent.key .. ':children'] or {}
      children[parent.key .. ':children'], list[#list + 1] = list, ident
    else
      redis.call('SADD', parent.key .. ':children', ident)
    end
    if not string.find(parent.follow_up, 'c', 1, true) then
      parent.follow_up = parent.follow_up .. 'c'
      redis.call('HSET', parent.key .. ':hash', 'follow_up', parent.follow_up)
    end
  end
  add_all(key .. ':parents', parents)
  if not standing.failed then add_all(key .. ':waits_for', standing.waits_for) end
end

-- The job that has the identifier for longer than it is queued, or nil: one that was canceled, or deleted, has not.
local function unique_holder(way, identifier)
  local pk = redis.call('GET', way.namespace .. ':unique:' .. way.repr .. ':' .. identifier)
  local values = pk and redis.call('HMGET', way.recipe.key .. ':' .. pk .. ':hash', 'status', 'identifier')
  return values and values[1] and values[1] ~= 'c' and values[2] == identifier and pk or nil
end

local function note_unique(way, identifier, pk, asked)
  if type(asked.milliseconds) == 'number' then
    local key = way.namespace .. ':unique:' .. way.repr .. ':' .. identifier
    redis.call('SET', key, pk, 'PX', string.format('%.0f', asked.milliseconds))
  end
  if asked.once and asked.once ~= '' then
    redis.call('SET', way.namespace .. ':done:' .. asked.once, pk, 'EX', DONE_SECONDS)
  end
end

-- What keeps a queued job from getting the values of a new one, as the reply to give; or nil, and what to write.
local function replacement_of(way, job, pk, record)
  local wanted, known, values, unique = record.uniqueness.replacement, {}, {}, {}
  for position, name in ipairs(wanted.names) do
    values[position] = text_of(job.texts, name) or false
    known[position] = redis.call('HGET', way.recipe.key .. ':' .. pk .. ':hash', name)
    for _, rule in ipairs(record.unique or NOTHING) do
      if rule[1] == name and values[position] ~= known[position] then unique[#unique + 1] = rule end
    end
  end
  local recipe = {key = way.recipe.key, repr = way.repr, indexes = wanted.indexes}
  for position, name in ipairs(wanted.names) do
    local broken = broken_index(recipe, name, known[position], values[position])
    if broken then return {'BROKEN', broken} end
  end
  local conflict = taken({unique = unique})
  if conflict then return {'TAKEN', conflict} end
  return nil, {recipe = recipe, names = wanted.names, values = values, known = known, keys = set_of(wanted.keys, 1, #wanted.keys)}
end

local function replace_fields(way, pk, record, new)
  if #new.names > 0 then write_fields(new.recipe, pk, new.names, new.values, new.known) end
  for position, name in ipairs(new.names) do
    local text, ident = new.values[position], way.repr .. ':' .. pk
    if name == 'run_options' and text ~= new.known[position] and is_noted_with_limits(way.namespace, ident) then
      limits_kit().look_anew(way.namespace, ident, limits_of(way.recipe, text))
    end
  end
  for name in pairs(new.keys) do redis.call('DEL', new.recipe.key .. ':' .. pk .. ':' .. name) end
  for _, command in ipairs(record.commands or NOTHING) do
    if new.keys[command[2]] then
      redis.call(command[1], new.recipe.key .. ':' .. pk .. ':' .. command[2], unpack(command, 3))
    end
  end
end

-- The answer to a new job whose identifier is queued already; nil when it is to run after that one.
local function meet(way, job, record, pk, rerun)
  local asked = record.uniqueness or NOTHING
  if asked.if_queued == 'raise' then return {'QUEUED', way.repr .. ':' .. pk, job.identifier, '1'} end
  if asked.if_queued ~= 'replace' and asked.if_queued ~= 'rerun' then return raise_or_move(way, job, pk) end
  local holder = redis.call('HGET', way.namespace .. ':claims', way.repr .. ':' .. pk)
  local status = redis.call('HGET', way.recipe.key .. ':' .. pk .. ':hash', 'status')
  local has_begun = status == 'r' or holder and holder ~= job.token
  if asked.if_queued == 'rerun' then
    if has_begun then return rerun and {'EXISTING', rerun} or nil end
    return raise_or_move(way, job, pk)
  end
  local refusal, new
  if not has_begun then refusal, new = replacement_of(way, job, pk, record) end
  if refusal then return refusal end
  local reply = raise_or_move(way, job, pk)
  if not new or (reply[1] ~= 'MOVED' and reply[1] ~= 'EXISTING') then return reply end
  replace_fields(way, pk, record, new)
  return {reply[1], pk, unpack(changed)}
end

-- A job that runs once more after another one does so however that ends, unless it says otherwise.
local function say_run(texts)
  local said = '"if_parent_fails":"run"}'
  for position = 1, #texts, 2 do
    if texts[position] == 'run_options' then
      local text = texts[position + 1]
      if not string.find(text, '"if_parent_fails"', 1, true) then
        texts[position + 1] = string.sub(text, 1, -2) .. (text ~= '{}' and ',' or '') .. said
      end
      return
    end
  end
  texts[#texts + 1], texts[#texts + 2] = 'run_options', '{' .. said
end

local function try_to_add(way, job)
  local recipe, record = way.recipe, job.rest == '' and {} or cjson.decode(job.rest)
  local asked = record.uniqueness or NOTHING
  local once = asked.once and asked.once ~= '' and redis.call('GET', way.namespace .. ':done:' .. asked.once)
  if once then return {'NEW', once} end  -- a repeated call
  local existing, rerun = live_queued(way.namespace, way.queue_recipe, recipe, job.identifier)
  local answer = existing and meet(way, job, record, existing, rerun)
  if answer then return answer end
  local holder = not existing and type(asked.milliseconds) == 'number' and unique_holder(way, job.identifier)
  if holder and asked.if_queued == 'raise' then return {'QUEUED', way.repr .. ':' .. holder, job.identifier, '0'} end
  if holder then return {'EXISTING', holder} end
  if existing then
    record.after, record.policy, recipes[way.repr] = {way.repr .. ':' .. existing}, 'run', recipe
    say_run(job.texts)
  end
  record.key, record.hash, record.sets = recipe.key, job.texts, job.sets
  local conflict = taken(record)
  if conflict then return {'TAKEN', conflict} end
  local standing, unfit
  if record.after then standing, unfit = standing_of(way.namespace, record.after, record.policy) end
  if unfit then return {'NO_PARENT', unfit} end
  local queue, refusal = queue_for(way, way.priority, job.due)
  if not queue then return refusal end
  local pk = create(record)
  note_queued(recipe, job.identifier, pk, existing)
  note_unique(way, job.identifier, pk, asked)
  local of = task_and_queue(recipe, recipe.task and text_of(job.texts, recipe.task), way.name)
  if standing then write_edges(recipe.key .. ':' .. pk, way.repr .. ':' .. pk, standing) end
  if standing and not standing.is_free then
    local failed = standing.failed
    register(way.namespace, way.repr, way.recipe_text, way.recipe)
    write_fields(recipe, pk, {'status', 'queued', 'delayed_until', 'queue_key', 'cancel_reason'}, {failed and 'c' or 'b',
      not failed and '1', job.due and format_date(job.due) or false, queue, failed and 'parent failed: ' .. failed})
    if failed then note_expiring(way.namespace, recipe, pk, 'c', text_of(job.texts, 'run_options')) end
    tally('a', of)
    if failed then tally('c', of) end
    return {'NEW', pk, unpack(changed)}
  end
  write_fields(recipe, pk, {'status', 'queued', 'delayed_until', 'queue_key'},
    {job.due and 'd' or 'w', '1', job.due and format_date(job.due) or false, queue})
  put_added(way, job, way.repr .. ':' .. pk, queue)
  tally('a', of)
  return {'NEW', pk, unpack(changed)}
end

-- Add a job: identifier, prepend, due (or nil), token and lease_seconds ('': it is not to be held), and sets, texts, rest
-- of its record. Answers as add.lua.
local function add_job(way, job)
  changed, creating = {}, nil
  local is_done, reply = pcall(try_to_add, way, job)
  if is_done then return reply end
  discard(way.recipe.key, job.sets)
  return {'FAILED', error_text(reply)}
end

-- May the caller record something about a running job? '' as token: only while nobody holds it.
-- Answers 'OK', 'ALREADY' (this very step is recorded: a repeated call) or 'LOST'.
local function guard(namespace, ident, token, worker, step)
  local holder = redis.call('HGET', namespace .. ':claims', ident)
  local done = worker ~= '' and redis.call('GET', namespace .. ':done:' .. worker)
  if done and string.find(' ' .. done .. ' ', ' ' .. token .. step .. ' ', 1, true) then return 'ALREADY' end
  if token == '' then return holder and 'LOST' or 'OK' end
  return holder == token and 'OK' or 'LOST'
end

-- Put a job that nobody runs any more back to where it belongs, under the lease `token`; the lease goes when that is
-- written. Answers 'OK'; 'ENDED' (there was nothing to put back); or, with the lease kept, 'HOMELESS' (its queue was
-- deleted) or 'BROKEN' (something else is under the keys of the queue).
local function give_back(namespace, queue_model, recipe, pk, ident, token)
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'queued', 'queue_key', 'delayed_until',
    'follow_up')
  local status, queue = values[1], values[3]
  local is_to_run = status == 'r' or status == 'w' or status == 'd' or (status == 'e' and values[2])
  if not is_to_run then
    if values[2] then write_fields(recipe, pk, {'queued'}, {false}) end  -- canceled, or somebody has begun to delete it
    if values[2] and status == 'c' then count_job(namespace, recipe, pk, 'c') end
    drop_lease(namespace, ident, token)
    note_end(namespace, recipe, pk, status, values[5])
    return 'ENDED'
  end
  local is_ours = queue and string.sub(queue, 1, #queue_model + 1) == queue_model .. ':'
  local owner = is_ours and queue_model or string.match(queue or '', '^(.*):[^:]*$')
  local name = queue and redis.call('HGET', queue .. ':hash', 'name')
  if not owner or not name then return 'HOMELESS' end
  if broken_key(namespace, owner, name, queue) then return 'BROKEN' end
  local due = status == 'd' and (parse_date(values[4]) or now() + 60)
  local is_late = due and due > now()
  if is_late then
    write_fields(recipe, pk, {'delayed_until', 'progress'}, {format_date(due), false})
    enter(namespace, owner, name, queue, ident, due)
  else
    write_fields(recipe, pk, {'status', 'start', 'end', 'delayed_until', 'progress'}, {'w', false, false, false, false})
    if status ~= 'w' then note_waiting(recipe, pk) end
    enter(namespace, owner, name, queue, ident, nil, true)
  end
  drop_lease(namespace, ident, token, not is_late)
  return 'OK'
end

-- Add ended jobs to a history of their queue. Answers its length, -1 when it cannot be written, -2 when the queue is gone;
-- how much of it the queue says to keep; and the name of the queue. `known`: these two, if the caller has just read them.
local function push_history(queue, history, known, ...)
  local values = known or redis.pcall('HMGET', queue .. ':hash', 'name', 'keep_' .. history)
  if values.err then return -1, '', '' end
  if not values[1] then return -2, '', '' end
  local length = redis.pcall('RPUSH', queue .. ':' .. history, ...)
  return type(length) == 'number' and length or -1, values[2] or '', values[1]
end

local function mark_done(namespace, token, worker, step)
  if worker ~= '' then redis.call('SET', namespace .. ':done:' .. worker, token .. step, 'EX', DONE_SECONDS) end
end

-- When a job may start: nil for at once. `kind` is '', 'until' (a score) or 'for' (seconds from now).
local function due_time(kind, value)
  if kind == '' then return nil end
  local current, wanted = now(), tonumber(value)
  if kind == 'for' then wanted = current + wanted end
  if wanted <= current then return nil end
  return math.min(wanted, LAST_SECOND)
end

-- What a job answered, beside its record; what it answered before is replaced, and forgotten when it begins anew.
local function save_result(recipe, pk, result, seconds)
  local key = recipe.key .. ':' .. pk .. ':saved_result'
  if type(seconds) == 'number' then
    redis.call('SET', key, result, 'PX', string.format('%.0f', math.max(seconds * 1000, 1)))
  else
    redis.call('SET', key, result)
  end
end

local function forget_result(recipe, pk)
  if not recipe.has_own_saved_result then redis.call('DEL', recipe.key .. ':' .. pk .. ':saved_result') end
end

-- From when on a job has waited for its start, by its fields `added` and `waiting_since`.
local function waits_since(recipe, added, since)
  return not recipe.has_own_waiting_since and since or added
end

-- Record the success of a job; see finish.lua. `start` is '' when its record says that it runs. With `steps`, what is to be
-- remembered of it is left to the caller.
local function record_success(namespace, ident, token, worker, queue, start, ended, extra, steps)
  local holder = token ~= '' and redis.call('HGET', namespace .. ':claims', ident)
  if token == '' or holder ~= token then  -- else this step cannot be recorded yet: it would have dropped the lease
    local state = guard(namespace, ident, token, worker, '/finish')
    if state ~= 'OK' then return {state} end
  end
  local repr, pk = split_ident(ident)
  local recipe = recipe_of(namespace, repr)
  local hash = recipe.key .. ':' .. pk .. ':hash'
  local values = redis.call('HMGET', hash, 'status', 'end', 'queued', 'start', 'tries', 'follow_up', 'run_options',
    recipe.task or 'status', 'added', 'waiting_since')
  local status, old_tries, follow_up = values[1], values[5], values[6]
  if not status and redis.call('EXISTS', hash) == 0 then
    drop_lease(namespace, ident, token)
    return {'GONE'}
  end
  local has_to_begin, more = start ~= '' and status ~= 'r', extra ~= '' and cjson.decode(extra)
  if status == 'c' or status == 'd' then
    if has_to_begin then
      write_fields(recipe, pk, {'start', 'tries'}, {start, next_count(old_tries)})
      local of = task_and_queue(recipe, values[8], queue_name(queue))
      tally_time('w', of, waits_since(recipe, values[9], values[10]), start)
    end
    return {'CHANGED', status}
  end

  if not has_to_begin then
    write_fields(recipe, pk, {'status', 'end', 'queued'}, {'s', ended, false}, values)
  else
    write_fields(recipe, pk, {'status', 'end', 'queued', 'start', 'tries'},
      {'s', ended, false, start, next_count(old_tries)}, values)
  end
  if more and more.result then save_result(recipe, pk, more.result, more.result_seconds) end
  drop_lease(namespace, ident, token)
  local length, keep, name = push_history(queue, 'success', nil, ident)
  local of = task_and_queue(recipe, values[8], name)
  if has_to_begin then tally_time('w', of, waits_since(recipe, values[9], values[10]), start) end
  tally_time('s', of, has_to_begin and start or values[4], ended)
  if steps then steps[#steps + 1] = token .. '/finish' else mark_done(namespace, token, worker, '/finish') end
  note_end(namespace, recipe, pk, 's', follow_up, values[7])
  return {'OK', tostring(length), keep, unpack(changed)}
end

-- As `note_end`, for a claim that meets a job which has ended: what that needs is made only then.
local function note_end_of_stale(...)
-- (what scripts share)
  note_end(...)
end

-- Take the first job; as `claim_next`, which see. Answers a third value, true, when it was parked instead.
local function claim_first(wanted)
  local namespace, queue_model, token = wanted.namespace, wanted.queue_model, wanted.token
  local claims = namespace .. ':claims'
  local found_broken

  -- Ask for something under a key; a key of a wrong type is the answer to this claim, unless the caller knows it.
  local function ask(command, key, ...)
    if wanted.broken[key] then return nil end
    local reply = redis.pcall(command, key, ...)
    if type(reply) == 'table' and reply.err then
      found_broken = found_broken or key
      return nil
    end
    return reply
  end

  local function name_of(queue)
    return ask('HGET', queue .. ':hash', 'name')
  end

  local function first_of_keys()
    for position = 1, #wanted.keys do
      local queue = string.match(wanted.keys[position], '^(.*):waiting$')
      if queue and (ask('LLEN', wanted.keys[position]) or 0) > 0 then
        local name = name_of(queue)
        local mark = name and ask('ZSCORE', side(namespace, 'ready', queue_model, name), PAUSED)
        if mark ~= nil and name then
          note_ready(namespace, queue_model, name, queue)
          if wanted.by_keys and not mark then return queue, name, ask('LINDEX', wanted.keys[position], '0') end
        end
      end
    end
  end

  local function first_of_names()
    local best, best_name, best_ident, best_priority
    for position = 1, #wanted.names do
      local name = wanted.names[position]
      local ready, passed = side(namespace, 'ready', queue_model, name), '0'
      repeat
        local top = ask('ZREVRANGE', ready, passed, passed, 'WITHSCORES') or NOTHING
        if not top[1] or top[1] == PAUSED or (best and tonumber(top[2]) <= best_priority) then break end
        local queue = queue_model .. ':' .. top[1]
        local waiting = queue .. ':waiting'
        local ident = ask('LINDEX', waiting, '0')
        if ident == nil or wanted.broken[waiting] or wanted.broken[queue .. ':hash'] then
          passed = passed + 1  -- a broken queue: there are few of them
        elseif ident and name_of(queue) == name then
          best, best_name, best_ident, best_priority = queue, name, ident, tonumber(top[2])
          break
        elseif not found_broken then
          redis.call('ZREM', ready, top[1])  -- so this loop ends
        end
      until found_broken
    end
    return best, best_name, best_ident
  end

  -- Would a job be given up when its worker is lost once more?
  local function is_last_chance(recipe, recoveries)
    return recoveries and count_of(recoveries) >= (recipe.max_recoveries or wanted.max_recoveries or 0)
  end

  local function answer(ident, queue, name, recipe, values, is_ahead)
    return {'CLAIMED', ident, queue, name, wanted.looks_around and next_due(namespace, queue_model, wanted.names, ask) or '?', values[1], values[3] or '',
      values[4] or '0', values[2] or '0', values[5] or '', tostring(recipe.lease_seconds or wanted.lease_seconds),
      is_ahead and '1' or is_last_chance(recipe, values[8]) and '2' or '0', not recipe.has_own_run_options and values[9] or '', unpack(changed)}
  end

  local FIELDS = {'status', 'tries', 'identifier', 'priority', 'cancel_on_error', 'start', 'queue_key', 'recoveries',
    'run_options', 'follow_up', 'added', 'waiting_since'}

  local again = redis.call('HGET', claims, token)
  if again then
    local repr, pk = split_ident(again)
    local recipe = recipe_of(namespace, repr)
    local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', unpack(FIELDS))
    if values[7] then
      local name = redis.call('HGET', values[7] .. ':hash', 'name') or ''
      local is_ahead = values[1] == 'w'
      if values[1] == 'r' then values[1] = 'w' end
      return answer(again, values[7], name, recipe, values, is_ahead), wanted.max_recoveries and not values[8]
    end
    drop_lease(namespace, again, token)  -- the record was deleted meanwhile
  end

  local function first()
    local queue, name, ident = first_of_keys()
    if wanted.by_keys then return queue, name, ident end
    return first_of_names()
  end

  local queue, name, ident = first()
  if not queue and not found_broken and not wanted.looks_around and call_due(namespace) > 0 then queue, name, ident = first() end
  if found_broken then return {'BROKEN', found_broken} end
  if not queue then
    for position = 1, #wanted.names do
      redis.call('DEL', side(namespace, 'doorbell', queue_model, wanted.names[position]))
    end
    return {'EMPTY', next_due(namespace, queue_model, wanted.names, ask)}
  end

  local waiting = queue .. ':waiting'
  local repr, pk = split_ident(ident)
  local recipe = repr and recipe_of(namespace, repr)
  if not recipe then return {'UNKNOWN', ident, queue} end
  local hash = recipe.key .. ':' .. pk .. ':hash'
  FIELDS[#FIELDS + 1] = recipe.task
  local values = redis.pcall('HMGET', hash, unpack(FIELDS))
  if values.err then return {'UNREADABLE', ident, queue, hash} end

  ident = recipe.repr .. ':' .. pk
  local status, has_next = values[1] or '', false
  local limits = limits_of(recipe, values[9])
  if status == '' and redis.call('EXISTS', hash) == 0 then
    status = 'GONE'
  elseif redis.call('HEXISTS', claims, ident) == 1 then
    status = 'r'
  elseif status == 'w' or status == 'd' or status == 'c' then  -- the lease first: the job is never in no place
    has_next = status == 'w' and not values[8] and (recipe.max_recoveries or wanted.max_recoveries or 0) > 0
    local expires = status == 'w' and expiry_of(recipe, values[9])
    if wanted.is_ahead and (not has_next or expires or limits) then return nil end
    if wanted.is_after and status == 'w' and is_last_chance(recipe, values[8]) then return nil end
    local index = status == 'w' and wanted.looks_around and (broken_index(recipe, 'status', 'w', 'r')
      or broken_index(recipe, 'status', 's', 'e') or broken_index(recipe, 'queued', '1')
      or expires and broken_index(recipe, 'status', 'c') or nil)
    index = index or limits and limits_kit().broken_limit(namespace, limits.key)
    if index then return {'BROKEN', waiting, index} end
    local starts = limits and status == 'w' and not (expires and expires <= now())
    local look_at = starts and limits_kit().refused_until(namespace, limits, 0, now())
    if look_at then
      limits_kit().park(namespace, ident, queue, limits, now(), look_at)
      redis.call('LPOP', waiting)
      return nil, false, true
    end
    take_lease(namespace, ident, token, now() + (recipe.lease_seconds or wanted.lease_seconds))
    redis.call('LPOP', waiting)
    if starts then
      limits_kit().take_place(namespace, ident, token, limits, now())
    elseif limits then
      stop_waiting(namespace, ident)
    end
    if expires and expires <= now() then
      write_fields(recipe, pk, {'status', 'cancel_reason', 'queue_key'}, {'c', 'expired', queue})
      status, values[1], has_next = 'c', 'c', false
    elseif status == 'w' and not wanted.is_ahead then
      local old_tries = values[2]
      values[2] = next_count(old_tries)
      write_fields(recipe, pk, {'status', 'tries', 'start', 'queue_key'}, {'r', values[2], wanted.start, queue},
        {status, old_tries, values[6], values[7]})
      tally_time('w', task_and_queue(recipe, values[13], name), waits_since(recipe, values[11], values[12]), wanted.start)
      if values[10] then note_begin(recipe, pk, values[10]) end
    else
      write_fields(recipe, pk, {'queue_key'}, {queue}, {values[7]})
    end
    return answer(ident, queue, name, recipe, values, status == 'w' and wanted.is_ahead), has_next
  end
  redis.call('LPOP', waiting)
  stop_waiting(namespace, ident)
  if status == 'GONE' then return {status, ident, queue, name, next_due(namespace, queue_model, wanted.names, ask)} end
  if status ~= 'r' and status ~= 'b' then write_fields(recipe, pk, {'queued'}, {false}) end
  note_end_of_stale(namespace, recipe, pk, status, values[10], values[9])
  return {'STALE', ident, queue, name, next_due(namespace, queue_model, wanted.names, ask), status}
end

-- Take the next job; see claim.lua. `wanted` holds what that gets, and `is_ahead`: it will wait for another one;
-- `is_after`: others are claimed in the same call. Jobs whose limits do not let them start are parked.
-- Answers the reply, nil for none, and whether another job may be claimed after this one.
local function claim_next(wanted)
  if wanted.looks_around then call_due(wanted.namespace) end
  for _ = 1, MAX_LOOKS do
    local reply, has_next, is_parked = claim_first(wanted)
    if not is_parked then return reply, has_next end
    if not wanted.by_keys then wanted.keys = NOTHING end
  end
  return {'PARKED'}
end
