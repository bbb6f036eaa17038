#!lua flags=allow-oom
-- Become or stay the leader of a role in a partition. A candidate of a lower rank number takes the lock from its
-- holder. Whoever asks, leader or not, shows that Redis is reachable: `heard` keeps when that was last so, and since
-- when without a gap.
-- KEYS lock rank heard
-- ARGV token ttl_ms rank gap_ms
-- Returns 1 (leader) or 0.
-- use clock
local lock, rank, heard = KEYS[1], KEYS[2], KEYS[3]
local now = clock()
local h = redis.call('HMGET', heard, 'at', 'since')
redis.call('HSET', heard, 'at', now)
if not h[1] or now - h[1] > tonumber(ARGV[4]) or tonumber(h[2] or now) > now then  -- or the clock went back
  redis.call('HSET', heard, 'since', now)
end
redis.call('PEXPIRE', heard, 3600000)
local holder = redis.call('GET', lock)
if holder and holder ~= ARGV[1] and tonumber(redis.call('GET', rank) or '0') <= tonumber(ARGV[3]) then
  return 0
end
redis.call('SET', lock, ARGV[1], 'PX', ARGV[2])
redis.call('SET', rank, ARGV[3], 'PX', ARGV[2])
return 1
