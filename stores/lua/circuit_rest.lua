#!lua flags=allow-oom
-- A provider wants to be left alone for a while, by those who can do without it.
-- KEYS circuit control
-- ARGV rest_ms ttl_ms
-- use clock
local rested = clock() + tonumber(ARGV[1])
if rested > tonumber(redis.call('HGET', KEYS[1], 'rest') or '0') then
  redis.call('HSET', KEYS[1], 'rest', rested)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SPUBLISH', KEYS[2], 'circuits')
return 1
