-- add: create a job in a queue, unless its identifier is queued already; then raise or move the existing one.
-- KEYS: models
-- ARGV: namespace repr key recipe queue_model queue_recipe queue_name priority queue_record identifier prepend delay_kind delay_value token lease_seconds rest sets_count sets_and_texts...
-- `queue_record`: of a new queue; null when it needs a primary key. Of the new job: `sets` are keys of sets that get its
-- primary key, `texts` the names and values of its hash, `rest` what else a record may have, as JSON, or ''; what says
-- that it waits or is delayed is added here.
-- Replies:
--   NEW pk changed...          created, and waiting or delayed (or held under `token`, when one is given)
--   MOVED pk changed...        the queued job got the priority or the place (or is held, ready to be moved by the caller)
--   EXISTING pk                the queued job stays as it is: it runs, or nothing asked to move it
--   NO_QUEUE priority          the job belongs in a queue that does not exist, and of which there is no record: create
--                              it (the existing job keeps this priority; or the model needs a primary key), ask again
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   TAKEN field                the primary key or a unique value belongs to another job
-- Invariants: at most one queued job for an identifier and class; a running job is never touched; all or nothing.
local way = way_to(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9])
local sets_end = 17 + tonumber(ARGV[17])
return add_job(way, {identifier = ARGV[10], prepend = ARGV[11] == '1', due = due_time(ARGV[12], ARGV[13]),
  token = ARGV[14], lease_seconds = tonumber(ARGV[15]), rest = ARGV[16], sets = slice(ARGV, 18, sets_end),
  texts = slice(ARGV, sets_end + 1, #ARGV)})
