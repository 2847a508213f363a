-- place: put a job in the waiting list or the delayed set of one queue; it leaves every other place.
-- KEYS: models
-- ARGV: namespace repr recipe pk queue_recipe queue_pk prepend delay_kind delay_value token
-- An ended job begins anew, without its `start`, `end` and `recoveries`; a canceled one stays so, and is skipped when it is taken.
-- Replies:
--   OK changed...
--   NOT_IN_STATUS b            it waits for other jobs; nothing was written
--   RUNNING                    another worker runs the job; nothing was written
--   QUEUED pk                  another job with this identifier is queued; nothing was written
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   GONE                       the record of the job or of the queue does not exist
local namespace, repr, pk, prepend, token = ARGV[1], ARGV[2], ARGV[4], ARGV[7] == '1', ARGV[10]
local queue_recipe, ident = cjson.decode(ARGV[5]), repr .. ':' .. pk
local recipe = cjson.decode(ARGV[3])
local queue = queue_recipe.key .. ':' .. ARGV[6]
local due = ARGV[8] ~= '' and math.min(tonumber(ARGV[9]), LAST_SECOND) or nil

local hash = recipe.key .. ':' .. pk .. ':hash'
local name = redis.call('HGET', queue .. ':hash', 'name')
if not name or redis.call('SISMEMBER', recipe.key .. ':collection', pk) == 0 then return {'GONE'} end
local holder = redis.call('HGET', namespace .. ':claims', ident)
local status, queued = unpack(redis.call('HMGET', hash, 'status', 'queued'), 1, 2)
if status == 'b' then return {'NOT_IN_STATUS', status} end
if (status == 'r' and not holder) or (holder and holder ~= token) then return {'RUNNING'} end

local broken = broken_key(namespace, queue_recipe.key, name, queue)
if broken then return {'BROKEN', broken} end
local rival = rival_of(namespace, queue_recipe, recipe, pk)
if rival then return {'QUEUED', rival} end
register(namespace, repr, ARGV[3])
if holder then drop_lease(namespace, ident, token) else leave_anywhere(namespace, queue_recipe, recipe, pk, ident) end
if status == 's' or status == 'e' then
  write_fields(recipe, pk, {'start', 'end', 'recoveries', 'cancel_reason'}, {false, false, false, false})
  forget_result(recipe, pk)
  if not holder then forget_past_expiry(recipe, pk) end
end
local begins_anew, has_waited = end_of(status, queued), status == 'w'
if status ~= 'c' then status = due and 'd' or 'w' end
write_fields(recipe, pk, {'status', 'queued', 'delayed_until', 'queue_key', 'progress'},
  {status, '1', due and format_date(due) or false, queue, false})
if not due and not has_waited then note_waiting(recipe, pk) end
if begins_anew then count_job(namespace, recipe, pk, 'q') end
enter(namespace, queue_recipe.key, name, queue, ident, due, prepend)
return {'OK', unpack(changed)}
