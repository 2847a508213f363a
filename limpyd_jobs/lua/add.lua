-- add: create a job in a queue, unless its identifier is queued already; then raise or move the existing one.
-- KEYS: models
-- ARGV: namespace repr recipe record queue_recipe queue_record identifier queue_name priority prepend delay_kind delay_value token lease_seconds
-- Replies:
--   NEW pk changed...          created, and waiting or delayed (or held under `token`, when one is given)
--   MOVED pk changed...        the queued job got the priority or the place (or is held, ready to be moved by the caller)
--   EXISTING pk                the queued job stays as it is: it runs, or nothing asked to move it
--   NO_QUEUE priority          the job belongs in a queue that does not exist, and of which there is no record: create
--                              it (the existing job keeps this priority; or the model needs a primary key), ask again
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   TAKEN field                the primary key or a unique value belongs to another job
-- Invariants: at most one queued job for an identifier and class; a running job is never touched; all or nothing.
local namespace, repr, identifier, name, priority = ARGV[1], ARGV[2], ARGV[7], ARGV[8], ARGV[9]
local prepend, token, lease_seconds = ARGV[10] == '1', ARGV[13], tonumber(ARGV[14])
local record, queue_recipe, queue_record = cjson.decode(ARGV[4]), cjson.decode(ARGV[5]), cjson.decode(ARGV[6])
local recipe = cjson.decode(ARGV[3])
local due = due_time(ARGV[11], ARGV[12])

local function queue_of(wanted)
  return find_queue(namespace, queue_recipe, name, wanted)
end

local function broken_key_of(queue)
  return broken_key(namespace, queue_recipe.key, name, queue or queue_recipe.key .. ':0')
end

local function new_queue()
  return remember_queue(namespace, queue_recipe, name, priority, create(queue_record))
end

local function hold(ident)
  take_lease(namespace, ident, token, now() + lease_seconds)
end

local function field_of_record(field)
  for position = 1, #record.hash, 2 do
    if record.hash[position] == field then return record.hash[position + 1] end
  end
end

local function raise_or_move(pk)
  local ident = repr .. ':' .. pk
  if token ~= '' and redis.call('HGET', namespace .. ':claims', ident) == token then  -- this call, repeated
    local is_new = redis.call('HGET', recipe.key .. ':' .. pk .. ':hash', 'added') == field_of_record('added')
    return {is_new and 'NEW' or 'MOVED', pk}
  end
  local values = redis.call('HMGET', recipe.key .. ':' .. pk .. ':hash', 'status', 'priority')
  local is_higher = tonumber(priority) > (tonumber(values[2] or '0') or 0)
  local is_running = values[1] == 'r' or redis.call('HEXISTS', namespace .. ':claims', ident) == 1
  if is_running or not (is_higher or prepend) then return {'EXISTING', pk} end
  local wanted = is_higher and priority or values[2] or '0'
  local queue = queue_of(wanted)
  if not queue and not unusable and (wanted ~= priority or queue_record == cjson.null) then return {'NO_QUEUE', wanted} end
  local broken = broken_key_of(queue)
  if broken then return {'BROKEN', broken} end
  queue = queue or new_queue()
  register(namespace, repr, ARGV[3])
  leave_anywhere(queue_recipe, recipe, pk, ident)
  write_fields(recipe, pk, {'status', 'queued', 'priority', 'delayed_until', 'queue_key'},
    {due and 'd' or 'w', '1', wanted, due and format_date(due) or false, queue})
  if token ~= '' then hold(ident) else enter(namespace, queue_recipe.key, name, queue, ident, due, prepend) end
  return {'MOVED', pk, unpack(changed)}
end

local existing = find_queued(recipe, identifier)
if existing then return raise_or_move(existing) end

local conflict = taken(record)
if conflict then return {'TAKEN', conflict} end
local queue = queue_of(priority)
if not queue and not unusable and queue_record == cjson.null then return {'NO_QUEUE', priority} end
local broken = broken_key_of(queue)
if broken then return {'BROKEN', broken} end
register(namespace, repr, ARGV[3])
queue = queue or new_queue()
local pk = create(record)
local ident = repr .. ':' .. pk
note_queued(recipe, identifier, pk)
write_fields(recipe, pk, {'status', 'queued', 'delayed_until', 'queue_key'},
  {due and 'd' or 'w', '1', due and format_date(due) or false, queue})
if token ~= '' then hold(ident) else enter(namespace, queue_recipe.key, name, queue, ident, due, prepend) end
return {'NEW', pk, unpack(changed)}
