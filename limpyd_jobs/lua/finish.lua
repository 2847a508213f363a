-- finish: record the success of a job.
-- KEYS: models
-- ARGV: namespace ident token worker queue end
-- Replies:
--   OK length keep changed...      of the list `success`: its length (-1: not a list; -2: the queue was deleted), and
--                              what the queue has as `keep_success`
--   ALREADY                    this end is recorded: the call was repeated
--   LOST                       the job is no longer the caller's; nothing was written
--   CHANGED status             the job was canceled or delayed while it ran; nothing was written
--   GONE                       the record does not exist; the lease is dropped
local namespace, ident, token, worker, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
allow_when_full(namespace)
local state = guard(namespace, ident, token, worker, '/finish')
if state ~= 'OK' then return {state} end
local repr, pk = split_ident(ident)
local recipe = recipe_of(namespace, repr)
local status = redis.call('HGET', recipe.key .. ':' .. pk .. ':hash', 'status')
if not status and redis.call('EXISTS', recipe.key .. ':' .. pk .. ':hash') == 0 then
  drop_lease(namespace, ident, token)
  return {'GONE'}
end
if status == 'c' or status == 'd' then return {'CHANGED', status} end

write_fields(recipe, pk, {'status', 'end', 'queued'}, {'s', ARGV[6], false})
drop_lease(namespace, ident, token)
local length, keep = push_history(queue, 'success', ident)
mark_done(namespace, token, worker, '/finish')
return {'OK', tostring(length), keep, unpack(changed)}
