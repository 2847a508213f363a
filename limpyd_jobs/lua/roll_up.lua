-- roll_up: add the numbers of minutes that are over to those of their hours, and to the total.
-- KEYS: models
-- ARGV: namespace
-- Each minute once: the field `rolled` of the total says which was the last. A call takes minutes until it has added some hundred numbers.
-- There, a number of a bucket is that of those in it; how long they took is in fields of the kinds `W` (waits) and `R` (runs), in microseconds.
-- Replies:
--   OK minute rolled           the minute that it is by the clock of Redis, and the last one that is added by now; if that is not the one
--                              before, there is more to do
--   BROKEN key                 something of another type is under this key; nothing was written
-- Invariants: the total has all that was counted up to the minute `rolled`, and nothing of what came later.
local namespace = ARGV[1]
local ENOUGH = 500  -- numbers in one call; but the last minute wholly
local SUMS = {w = 'W', s = 'R', e = 'R'}
local prefix = namespace .. ':numbers:'
local total = prefix .. 'total'
local time = redis.call('TIME')
local minute = math.floor(time[1] / 60)
allow_when_full(namespace)

local rolled = redis.pcall('HGET', total, 'rolled')
if type(rolled) == 'table' then return {'BROKEN', total} end
rolled = math.max(tonumber(rolled or 0) or 0, minute - 1561)  -- older ones have expired
rolled = math.min(rolled, minute - 1)  -- the clock was put back

local function add(key, field, text, most, seconds)
  if redis.pcall('HINCRBY', key, field, text) == tonumber(text) then note_number(key, field, text, most, seconds) end
end

local function add_both(hour, field, number)
  local text = string.format('%.0f', number)
  add(hour, field, text, 2000, 2678400)  -- 31 days
  add(total, field, text, 10000)
end

local function add_field(hour, field, number)
  local kind, bucket, of = string.match(field, '^(%l)(%d*)( .*)$')
  if not kind or not number or number < 0 then return end  -- somebody else's
  if bucket == '' then return add_both(hour, field, number) end
  if not SUMS[kind] then return end
  local count = math.floor(number / 10000000000)
  local micros = (number - count * 10000000000) * 2 ^ bucket
  add_both(hour, field, count)
  if micros > 0 then add_both(hour, SUMS[kind] .. of, micros) end
end

local added = 0
while rolled < minute - 1 and added < ENOUGH do
  rolled = rolled + 1
  redis.call('HSET', total, 'rolled', string.format('%.0f', rolled))
  local hour = prefix .. 'hour:' .. string.format('%.0f', math.floor(rolled / 60))
  local found = redis.pcall('HGETALL', prefix .. string.format('%.0f', rolled))  -- of another type: it has no numbers
  for position = 1, #found, 2 do
    add_field(hour, found[position], tonumber(found[position + 1]))
    added = added + 1
  end
end
return {'OK', string.format('%.0f', minute), string.format('%.0f', rolled)}
