-- note_worker: write down what a worker is and does, for some seconds, and forget those whose time is over, ten at most.
-- KEYS: models
-- ARGV: namespace recipe pk seconds names_and_values...
-- `recipe` is the one of the records of workers. Without any names, the record of `pk` goes; '' as `pk`: nobody's. What is
-- written is the whole record, so that it is there again after a loss; `heartbeat`, when that was, is added.
-- Replies:
--   OK
local namespace, recipe, pk = ARGV[1], cjson.decode(ARGV[2]), ARGV[3]
local workers, collection, current = namespace .. ':workers', recipe.key .. ':collection', now()
allow_when_full(namespace)

local function forget_worker(gone)
  local names, nothing = redis.call('HKEYS', recipe.key .. ':' .. gone .. ':hash'), {}
  for position = 1, #names do nothing[position] = false end
  if names[1] then write_fields(recipe, gone, names, nothing) end
  redis.call('SREM', collection, gone)
  redis.call('ZREM', workers, gone)
end

local names, values = {'heartbeat'}, {format_date(current)}
for position = 5, #ARGV, 2 do
  names[#names + 1], values[#values + 1] = ARGV[position], ARGV[position + 1]
end
if #names > 1 then
  redis.call('ZADD', workers, score(current + tonumber(ARGV[4])), pk)
  redis.call('SADD', collection, pk)
  write_fields(recipe, pk, names, values)
elseif pk ~= '' then
  forget_worker(pk)
end
for _, lapsed in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', score(current), 'LIMIT', 0, 10)) do
  forget_worker(lapsed)
end
return {'OK'}
