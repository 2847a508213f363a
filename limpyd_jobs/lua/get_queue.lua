-- get_queue: the queue with a name and a priority, created when there is none.
-- KEYS: models
-- ARGV: namespace queue_recipe queue_record name priority
-- Replies:
--   FOUND pk
--   NEW pk
--   NO_RECORD                  there is none, and `queue_record` is null: its primary key must be given
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   TAKEN field                the primary key or a unique value belongs to another queue
local namespace, name, priority = ARGV[1], ARGV[4], ARGV[5]
local recipe, record = cjson.decode(ARGV[2]), cjson.decode(ARGV[3])

local queue = find_queue(namespace, recipe, name, priority)
if unusable then return {'BROKEN', unusable} end
if queue then return {'FOUND', string.sub(queue, #recipe.key + 2)} end
if record == cjson.null then return {'NO_RECORD'} end
local conflict = taken(record)
if conflict then return {'TAKEN', conflict} end
local pk = create(record)
remember_queue(namespace, recipe, name, priority, pk)
ring(namespace, recipe.key, name)
return {'NEW', pk}
