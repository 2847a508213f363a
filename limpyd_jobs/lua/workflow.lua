-- workflow: create jobs that come after one another: all, or none.
-- KEYS: models
-- ARGV: namespace classes targets jobs...
-- All are JSON. Classes: a list of {repr, key, recipe}. Targets: of {model, recipe, name, priority, record}, as for `add`. A job:
--   {class, target, pk, identifier, hash, sets, after, policy, delay, ...}
-- `class`, `target`: numbers, from 1; `after`: idents of jobs that are there, or that come before it here; `policy`: what it does
-- if one of these fails; `delay`: kind and value; the rest is that of its record. The primary keys are the caller's, unused.
-- Jobs that come after none are WAITING or DELAYED, others BLOCKED; or CANCELED, if a job that is there has failed.
-- Replies:
--   OK changed...
--   ALREADY                    the call was repeated
--   NO_QUEUE number            this target is a queue that does not exist, and of which there is no record
--   NO_PARENT ident            a job is to come after this one, which does not exist, or cannot have jobs that come after it
--   QUEUED ident identifier    a job is queued under this identifier
--   BROKEN key                 something of another type is under this key of a queue
--   TAKEN field                a primary key or a unique value belongs to another job
--   FAILED error               of a command
-- Unless OK, nothing was written. Invariants: as for `add`.
local namespace = ARGV[1]
local classes, targets, jobs = cjson.decode(ARGV[2]), cjson.decode(ARGV[3]), {}
local members = {}  -- of sets, by their keys
local by_class = {}
for number, class in ipairs(classes) do
  class.text, class.recipe = class.recipe, cjson.decode(class.recipe)
  by_class[number] = {keys = {}, identifiers = {}}
end
for position = 4, #ARGV do
  local job = cjson.decode(ARGV[position])
  job.class_number, job.class, job.key = job.class, classes[job.class], classes[job.class].key .. ':' .. job.pk
  job.ident = job.class.repr .. ':' .. job.pk
  jobs[#jobs + 1] = job
end
for _, target in ipairs(targets) do target.queue_recipe = cjson.decode(target.recipe) end

local function collect(key, member)
  local list = members[key]
  if list then list[#list + 1] = member else members[key] = {member} end
end

-- Is no job known by any of the identifiers of a class? Else each has to be looked up.
local function are_all_new(recipe, identifiers)
  local prefix = equal_index(recipe, 'identifier')
  if not prefix then return false end
  for first = 1, #identifiers, 1000 do
    local keys = {}
    for position = first, math.min(first + 999, #identifiers) do keys[#keys + 1] = prefix .. identifiers[position] end
    if redis.call('EXISTS', unpack(keys)) > 0 then return false end
  end
  return true
end

local values = {}

-- Which unique value of a job another one has that is to be written, or nil.
local function taken_here(job)
  for _, unique in ipairs(job.unique or NOTHING) do
    local value = job.class.key .. ' ' .. unique[1] .. ' ' .. unique[4 - (unique[2] == 'equal' and 1 or 0)]
    if values[value] then return unique[1] end
    values[value] = true
  end
end

local function refusal_of_class(number)
  local class, known = classes[number], by_class[number]
  class.is_new = are_all_new(class.recipe, known.identifiers)
  for _, identifier in ipairs(class.is_new and NOTHING or known.identifiers) do
    local queued = live_queued(namespace, targets[1].queue_recipe, class.recipe, identifier)
    if queued then return {'QUEUED', class.repr .. ':' .. queued, identifier} end
  end
end

local function refusal_of_target(number, target)
  target.queue = find_queue(namespace, target.queue_recipe, target.name, target.priority)
  local broken = broken_key(namespace, target.model, target.name, target.queue or target.model .. ':0')
  if broken then return {'BROKEN', broken} end
  if not target.queue and target.record == 'null' then return {'NO_QUEUE', tostring(number)} end
end

-- The reply that refuses all of it, or nil; sees to what each job comes after.
local function refusal()
  for _, job in ipairs(jobs) do
    local known = by_class[job.class_number]
    known.identifiers[#known.identifiers + 1] = job.identifier
    local conflict = seen[job.ident] and 'pk' or taken(job, job.class.key) or taken_here(job)
    if conflict then return {'TAKEN', conflict} end
    job.due = due_time(job.delay[1], job.delay[2])
    local standing, unfit = standing_of(namespace, job.after, job.policy)
    if not standing then return {'NO_PARENT', unfit} end
    job.standing = standing
    seen[job.ident] = {ident = job.ident, key = job.key, follow_up = '', ended = standing.failed and 'c'}
  end
  for number in ipairs(classes) do
    local refused = refusal_of_class(number)
    if refused then return refused end
  end
  for number, target in ipairs(targets) do
    local refused = refusal_of_target(number, target)
    if refused then return refused end
  end
end

local function collect_index(job, field, value)
  for _, index in ipairs(job.class.recipe.indexes[field] or NOTHING) do
    if index[1] == 'equal' then collect(index[2] .. value, job.pk) else return reindex(job.class.recipe, job.pk, field, false, value) end
  end
end

local function write_job(job)
  local standing, texts = job.standing, job.hash
  local status = standing.failed and 'c' or not standing.is_free and 'b' or job.due and 'd' or 'w'
  local target = targets[job.target]
  local written = {status = status, queue_key = target.queue, queued = status ~= 'c' and '1' or nil,
    delayed_until = job.due and format_date(job.due) or nil}
  if standing.failed and not job.class.recipe.has_own_cancel_reason then
    written.cancel_reason = 'parent failed: ' .. standing.failed
  end
  if job.has_children then written.follow_up = (text_of(texts, 'follow_up') or '') .. 'c' end
  for field, value in pairs(written) do
    texts[#texts + 1], texts[#texts + 2] = field, value
    collect_index(job, field, value)
  end
  redis.call('HSET', job.key .. ':hash', unpack(texts))
  if status == 'c' then note_expiring(namespace, job.class.recipe, job.pk, status, text_of(texts, 'run_options')) end
  for _, command in ipairs(job.commands or NOTHING) do
    redis.call(command[1], job.key .. ':' .. command[2], unpack(command, 3))
  end
  for _, index in ipairs(job.scores or NOTHING) do redis.call('ZADD', index[1], index[2], index[3] .. job.pk) end
  for _, key in ipairs(job.sets) do collect(key, job.pk) end
  collect(job.class.key .. ':collection', job.pk)
  write_edges(job.key, job.ident, standing, members)
  if not job.class.is_new then note_queued(job.class.recipe, job.identifier, job.pk) end
  job.status = status
  local of = task_and_queue(job.class.recipe, text_of(texts, job.class.recipe.task), target.name)
  tally('a', of)
  if status == 'c' then tally('c', of) end
end

local function enter_all(target, idents)
  for first = 1, #idents, 1000 do
    redis.call('RPUSH', target.queue .. ':waiting', unpack(idents, first, math.min(first + 999, #idents)))
  end
  note_ready(namespace, target.model, target.name, target.queue)
  ring(namespace, target.model, target.name, #idents)
end

local function write_all()
  for _, target in ipairs(targets) do
    target.queue = target.queue or remember_queue(namespace, target.queue_recipe, target.name, target.priority,
      create(cjson.decode(target.record)))
    target.waiting = {}
  end
  for _, class in ipairs(classes) do register(namespace, class.repr, class.text) end
  for _, job in ipairs(jobs) do seen[job.ident].follow_up = job.has_children and 'c' or '' end
  for _, job in ipairs(jobs) do write_job(job) end
  for key, list in pairs(members) do add_all(key, list) end
  for _, job in ipairs(jobs) do
    local target = targets[job.target]
    if job.status == 'w' then
      target.waiting[#target.waiting + 1] = job.ident
    elseif job.status == 'd' then
      enter(namespace, target.model, target.name, target.queue, job.ident, job.due)
    end
  end
  for _, target in ipairs(targets) do
    if target.waiting[1] then enter_all(target, target.waiting) end
  end
end

local function undo()
  for key, list in pairs(members) do
    for _, member in ipairs(list) do redis.pcall('SREM', key, member) end
  end
  for _, job in ipairs(jobs) do
    redis.pcall('DEL', job.key .. ':hash', job.key .. ':parents', job.key .. ':waits_for')
    for _, command in ipairs(job.commands or NOTHING) do redis.pcall('DEL', job.key .. ':' .. command[2]) end
    leave(targets[job.target].queue or '', job.ident)
  end
end

local first = jobs[1]
local workflow = redis.call('HGET', first.key .. ':hash', 'workflow')
if workflow and workflow == text_of(first.hash, 'workflow') then return {'ALREADY'} end
local refused = refusal()
if refused then return refused end
local is_done, problem = pcall(write_all)
if not is_done then
  undo()
  return {'FAILED', error_text(problem)}
end
write_numbers(namespace)
return {'OK', unpack(changed)}
