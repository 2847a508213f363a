-- promote: move the delayed jobs of a queue that are due to its waiting list, by the clock of Redis.
-- KEYS: models
-- ARGV: namespace queue_model queue_pk limit unresolvable...
-- The status changes only where it is DELAYED. `unresolvable` are idents whose class cannot be had: they move as they
-- are, and the worker that takes them rejects them. A score that differs from `delayed_until` by whole quarters of an
-- hour comes from a machine of version 2 in another time zone: it is corrected.
-- Replies:
--   OK more failed changed_count changed... gone...
--                              more: 1 when others may be due; failed: how many idents had no record
--   UNKNOWN ident is_due       the class is not in the registry: register it or name it as unresolvable
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   LOCKED                     a worker of version 2 does it
local namespace, queue_model, limit = ARGV[1], ARGV[2], tonumber(ARGV[4])
local queue = queue_model .. ':' .. ARGV[3]
local delayed = queue .. ':delayed'
if redis.call('EXISTS', queue .. ':requeue_all_delayed_ready_jobs') == 1 then return {'LOCKED'} end
local name = redis.call('HGET', queue .. ':hash', 'name')
if not name then return {'OK', '0', '0', '0'} end
local broken = broken_key(namespace, queue_model, name, queue)
if broken then return {'BROKEN', broken} end

local unresolvable = {}
allow_when_full(namespace)
for position = 5, #ARGV do unresolvable[ARGV[position]] = true end
local current = now()

local jobs, seen = {}, redis.call('ZRANGE', delayed, 0, limit - 1, 'WITHSCORES')
for position = 1, #seen, 2 do
  local ident, due = seen[position], tonumber(seen[position + 1])
  local repr, pk = split_ident(ident)
  local recipe = repr and recipe_of(namespace, repr)
  if not recipe and not unresolvable[ident] then return {'UNKNOWN', ident, due <= current and '1' or '0'} end
  local status, delayed_until
  if recipe then
    local values = redis.pcall('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'delayed_until')
    if values.err then values = {'', false} end  -- no hash: the worker that takes it says so
    status, delayed_until = values[1], parse_date(values[2])
  end
  local shift = delayed_until and math.abs(delayed_until - due) or 0
  if shift >= 899 and shift <= 50400 and math.abs(shift / 900 - math.floor(shift / 900 + 0.5)) < 0.0001 then
    due = delayed_until
    redis.call('ZADD', delayed, score(due), ident)
  end
  if due <= current then
    local name_of_job = recipe and recipe.repr .. ':' .. pk or ident
    jobs[#jobs + 1] = {entry = ident, ident = name_of_job, pk = pk, recipe = recipe, status = status, due = due}
  end
end

local gone, moved = {}, 0
for _, job in ipairs(jobs) do
  local is_leased = redis.call('HEXISTS', namespace .. ':claims', job.ident) == 1
  if job.recipe and not job.status and redis.call('EXISTS', job.recipe.key .. ':' .. job.pk .. ':hash') == 0 then
    gone[#gone + 1] = job.ident
  elseif not is_leased and job.status ~= 'r' then  -- of what has ended, `claim` makes an end
    if job.status == 'd' then
      write_fields(job.recipe, job.pk, {'status', 'delayed_until', 'queue_key', 'waiting_since'},
        {'w', false, queue, format_date(job.due)})
    end
    redis.call('RPUSH', queue .. ':waiting', job.ident)
    moved = moved + 1
  end
  redis.call('ZREM', delayed, job.entry)
end
if moved > 0 then
  note_ready(namespace, queue_model, name, queue)
  ring(namespace, queue_model, name, moved)
end
note_due(namespace, queue_model, name, queue)

local reply = {'OK', #jobs == limit and '1' or '0', tostring(#gone), tostring(#changed)}
for _, item in ipairs(changed) do reply[#reply + 1] = item end
for _, ident in ipairs(gone) do reply[#reply + 1] = ident end
return reply
