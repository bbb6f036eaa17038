#!lua
-- Put the hot copy of a result; not where somebody else fetches a newer one.
-- KEYS hot flight
-- ARGV owner (of the flight, as the caller knows it) ttl_ms at meta items ('': they are too large)
-- Returns 1 or 0.
local hot, flight = unpack(KEYS)
local owner, ttl, at, meta, items = unpack(ARGV)
local generation = redis.call('GET', flight)
if generation and generation ~= owner then
  return 0
end
redis.call('DEL', hot)
redis.call('HSET', hot, 'at', at, 'meta', meta)
if items ~= '' then
  redis.call('HSET', hot, 'items', items)
end
redis.call('PEXPIRE', hot, ttl)
return 1
