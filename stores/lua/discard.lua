#!lua flags=allow-oom
-- Dead letters go.
-- KEYS dead
-- ARGV entry ids
-- Returns the number of those that were there.
local gone = redis.call('XDEL', KEYS[1], unpack(ARGV))
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[1])
end
return gone
