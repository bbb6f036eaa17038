#!lua flags=allow-oom
-- A worker finds that Redis has lost something of its attempt: what the next one publishes begins far ahead.
-- KEYS gen
-- ARGV attempt next (the index after the last chunk that this attempt had published)
-- Returns 1 where Redis is behind, 0 where it is not and the attempt was simply followed by another one.
local h = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'next')
if (h[1] == 'queued' or h[1] == 'leased' or h[1] == 'parked') and
    (tonumber(h[2]) < tonumber(ARGV[1]) or h[2] == ARGV[1] and tonumber(h[3]) < tonumber(ARGV[2])) then
  redis.call('HSET', KEYS[1], 'skip', 1)
  return 1
end
return 0
