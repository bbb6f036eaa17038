#!lua flags=allow-oom
-- A worker finds that Redis has lost something of its attempt: what is published next begins far ahead. An attempt that
-- goes on meanwhile is told by a gap.
-- KEYS gen
-- ARGV fence next (the index after the last chunk that this attempt may have published)
-- Returns 1 where Redis is behind, 0 where it is not and the attempt was simply followed by another one.
-- use fence
local fence, next = ARGV[1], tonumber(ARGV[2])
local h = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'call', 'next')
if next == 0 or (h[1] ~= 'queued' and h[1] ~= 'leased' and h[1] ~= 'parked') then
  return 0
end
local mine, attempt = tonumber(string.match(fence, '^%d+')), tonumber(h[2])
if attempt < mine or attempt == mine and (not current(fence, h[2], h[3]) or tonumber(h[4]) < next) then
  redis.call('HSET', KEYS[1], 'skip', 1)
  return 1
end
return 0
