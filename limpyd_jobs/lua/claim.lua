-- claim: take the next job of some queues, highest priority first, and give a lease on it.
-- KEYS: models
-- ARGV: namespace queue_model token lease_seconds start looks_around by_keys names_count keys_count names_keys_and_broken...
-- `lease_seconds`: its class may say another number. With `looks_around` ('1') it is asked when the next job is due, and
-- whether the indexes of the class can be written; a worker that is busy does so now and then. `names` in the order of preference between equal priorities.
-- `keys` are waiting lists that programs which do not ring may have filled: they are looked at first. With `by_keys`, they
-- alone are, in their order. `broken` are keys that the caller knows to be of a wrong type: their queues are passed over.
-- Replies:
--   CLAIMED ident queue name next_due status identifier priority tries cancel_on_error lease_seconds how run_options changed...
--              `how`: 0, it runs; 1, it is claimed ahead (see exchange.lua); 2, it runs, and its lease has lapsed as often as it may. Status w: RUNNING, start and tries are written; d or c: nothing is written, the job is leased all the same.
--              A job that waits and whose `expires` is past becomes CANCELED ("expired"), and is answered with the status c
--   STALE ident queue name next_due status
--              the entry was taken away: the job ended (it is no longer queued), or runs elsewhere (status r)
--   GONE ident queue name next_due      the entry was taken away: its record does not exist
--   UNKNOWN ident queue                 the class is not in the registry: register or reject it, nothing was taken
--   UNREADABLE ident queue key          its record, under this key, is not a hash: reject it, nothing was taken
--   BROKEN key                          something of another type is under this key of a queue, nothing was taken
--   BROKEN key index                    the same, under an index of the first job of the waiting list `key`
--   EMPTY next_due                      nothing waits; the doorbells are cleared
--   PARKED                              a hundred jobs that may not start yet were parked (see docs/limits.md): ask again
-- `next_due`: seconds until the first delayed job is due, or a parked one may start, '' when there is none, '?' when nobody asked.
-- Invariants: the same token gets the same job; a job is in the list or leased, never neither.
local names_count, keys_count = tonumber(ARGV[8]), tonumber(ARGV[9])
allow_when_full(ARGV[1])
local reply = claim_next({namespace = ARGV[1], queue_model = ARGV[2], token = ARGV[3], lease_seconds = tonumber(ARGV[4]),
  start = ARGV[5], looks_around = ARGV[6] == '1', by_keys = ARGV[7] == '1', names = slice(ARGV, 10, 9 + names_count),
  keys = slice(ARGV, 10 + names_count, 9 + names_count + keys_count),
  broken = set_of(ARGV, 10 + names_count + keys_count, #ARGV)})
write_numbers(ARGV[1])
return reply
