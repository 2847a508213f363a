-- execute: create a job that its caller runs at once: it is leased to the caller, and in no queue.
-- KEYS: models
-- ARGV: namespace repr recipe token lease_seconds record queue_name
-- The record says that it is RUNNING, since when and for the first time. It has no `queue_key` and is not `queued`: so when its
-- process dies and the lease lapses, `recover` dooms it, and its identifier does not keep another job from being queued.
-- Replies:
--   NEW pk                     the same token gets the same job again
--   TAKEN field                the primary key or a unique value belongs to another record; nothing was written
local namespace, repr, token, record = ARGV[1], ARGV[2], ARGV[4], cjson.decode(ARGV[6])
local again = redis.call('HGET', namespace .. ':claims', token)
if again then
  local _, known = split_ident(again)
  return {'NEW', known}
end
local conflict = taken(record)
if conflict then return {'TAKEN', conflict} end
register(namespace, repr, ARGV[3])
local is_done, pk = pcall(create, record)
if not is_done then
  discard(record.key, record.sets)
  return redis.error_reply(error_text(pk))
end
local recipe = recipe_of(namespace, repr)
local of = task_and_queue(recipe, text_of(record.hash, recipe.task), ARGV[7])
tally('a', of)
tally_time('w', of, false)
write_numbers(namespace)
take_lease(namespace, repr .. ':' .. pk, token, now() + tonumber(ARGV[5]))
return {'NEW', pk}
