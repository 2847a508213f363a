-- finish: record the success of a job.
-- KEYS: models
-- ARGV: namespace ident token worker queue end extra
-- `extra` is '', or JSON, of what is stored with the success: `result`, a text that is kept for `result_seconds`; null for ever.
-- Replies:
--   OK length keep changed...      of the list `success`: its length (-1: not a list; -2: the queue was deleted), and
--                              what the queue has as `keep_success`
--   ALREADY                    this end is recorded: the call was repeated
--   LOST                       the job is no longer the caller's; nothing was written
--   CHANGED status             the job was canceled or delayed while it ran; nothing was written
--   GONE                       the record does not exist; the lease is dropped
allow_when_full(ARGV[1])
local reply = record_success(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], '', ARGV[6], ARGV[7])
write_numbers(ARGV[1])
return reply
