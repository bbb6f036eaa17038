#!lua flags=allow-oom
-- Become or stay the leader of a role in a partition.
-- KEYS lock
-- ARGV token ttl_ms
-- Returns 1 (leader) or 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
