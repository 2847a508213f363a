-- add: create jobs of a class in queues, each unless its identifier is queued already; then raise or move the existing one.
-- KEYS: models
-- ARGV: namespace repr key recipe queue_model queue_recipe targets_count targets_and_jobs...
-- A target is a queue: name priority record; `record` of a new queue, null when it needs a primary key. A job:
--   target identifier prepend delay_kind delay_value token lease_seconds rest sets_count texts_count sets... texts...
-- `target`: its number, from 1; `sets`: keys of sets that get its primary key; `texts`: names and values of its hash;
-- `rest`: what else a record may have, as JSON, or ''; in it `uniqueness`: how the identifier is unique: `if_queued` (keep,
-- replace, rerun, raise), `milliseconds` or null, `once`: a name for this call when it must not be done twice, and
-- `replacement`: names of fields in the hash, their indexes, and keys of others.
-- And in it `after`: idents of jobs that it comes after, `policy`: what it does if one of them fails. If not all of them
-- have ended well, it is BLOCKED, or CANCELED by its policy, and in no queue. What says that it waits or is delayed is added here.
-- Replies, in a list, for each job up to one that is answered NO_QUEUE:
--   NEW pk changed...          created, and waiting, delayed, blocked or canceled (or held under `token`, when one is given)
--   MOVED pk changed...        the queued job got the priority or the place (or is held, ready to be moved by the caller)
--   EXISTING pk changed...     the queued job stays where it is: it runs, or nothing asked to move it; it got the values
--                              of the new one, if that was asked for and it had not begun
-- A queued job whose `expires` is past, and that no worker has come to, is not counted: it becomes CANCELED, "expired".
--   NO_QUEUE priority          the job belongs in a queue that does not exist, and of which there is no record: create
--                              it (the existing job keeps this priority; or the model needs a primary key), ask again
--   QUEUED ident identifier is_queued   `raise` was asked for, and this job has the identifier
--   BROKEN key                 something of another type is under this key of the queue; nothing was written
--   NO_PARENT ident            it is to come after this job, which does not exist, or cannot have jobs that come after it
--   TAKEN field                the primary key or a unique value belongs to another job
--   FAILED error               of a command that wrote it
-- Invariants: at most one queued job for an identifier and class, and one BLOCKED to run after it (`rerun`); a running job is never touched; all or nothing.
local at, targets, replies = 8, {}, {}
for number = 1, tonumber(ARGV[7]) do
  targets[number] = way_to(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[at], ARGV[at + 1], ARGV[at + 2])
  at = at + 3
end
while ARGV[at] do
  local sets_end = at + 9 + tonumber(ARGV[at + 8])
  local last = sets_end + tonumber(ARGV[at + 9])
  local job = {identifier = ARGV[at + 1], prepend = ARGV[at + 2] == '1', due = due_time(ARGV[at + 3], ARGV[at + 4]),
    token = ARGV[at + 5], lease_seconds = tonumber(ARGV[at + 6]), rest = ARGV[at + 7],
    sets = slice(ARGV, at + 10, sets_end), texts = slice(ARGV, sets_end + 1, last)}
  local reply = add_job(targets[tonumber(ARGV[at])], job)
  replies[#replies + 1] = reply
  if reply[1] == 'NO_QUEUE' then break end
  at = last + 1
end
write_numbers(ARGV[1])
return replies
