-- renew: prolong the leases of the jobs that a process runs.
-- KEYS: models
-- ARGV: namespace lease_seconds idents_and_tokens...
-- Replies:
--   OK lost...                 the idents that belong to somebody else by now
local namespace, deadline = ARGV[1], now() + tonumber(ARGV[2])
local lost = {'OK'}
for position = 3, #ARGV, 2 do
  local ident, token = ARGV[position], ARGV[position + 1]
  if redis.call('HGET', namespace .. ':claims', ident) == token then
    redis.call('ZADD', namespace .. ':leases', score(deadline), ident)
  else
    lost[#lost + 1] = ident
  end
end
return lost
