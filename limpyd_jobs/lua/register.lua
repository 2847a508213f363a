-- register: tell the registry what a class of jobs means, so that scripts which meet its idents know what to write.
-- KEYS: models
-- ARGV: namespace repr recipe
-- Replies:
--   OK
allow_when_full(ARGV[1])
register(ARGV[1], ARGV[2], ARGV[3])
return {'OK'}
