#!lua flags=allow-oom
-- A probe came out of its queue: every message that went in before it has been taken.
-- KEYS mark
-- ARGV seq
-- Returns the mark.
local mark = tonumber(redis.call('GET', KEYS[1]) or '0')
local seq = tonumber(ARGV[1])
if seq > mark then
  redis.call('SET', KEYS[1], seq)
  return seq
end
return mark
