#!lua flags=allow-oom
-- Become or stay the leader of a role in a partition. A candidate of a lower rank number takes the lock from its holder.
-- KEYS lock rank
-- ARGV token ttl_ms rank
-- Returns 1 (leader) or 0.
local lock, rank = KEYS[1], KEYS[2]
local holder = redis.call('GET', lock)
if holder and holder ~= ARGV[1] and tonumber(redis.call('GET', rank) or '0') <= tonumber(ARGV[3]) then
  return 0
end
redis.call('SET', lock, ARGV[1], 'PX', ARGV[2])
redis.call('SET', rank, ARGV[3], 'PX', ARGV[2])
return 1
