-- renew: prolong the leases of the jobs that a process runs.
-- KEYS: models
-- ARGV: namespace idents_tokens_and_seconds...
-- Replies:
--   OK lost...                 the idents that belong to somebody else by now
local namespace, current = ARGV[1], now()
local lost = {'OK'}
allow_when_full(namespace)
for position = 2, #ARGV, 3 do
  local ident, token = ARGV[position], ARGV[position + 1]
  if redis.call('HGET', namespace .. ':claims', ident) == token then
    redis.call('ZADD', namespace .. ':leases', score(current + tonumber(ARGV[position + 2])), ident)
  else
    lost[#lost + 1] = ident
  end
end
return lost
