#!lua
-- A completion joins a generation, if that has a whole answer or still may get one. The same call again changes nothing.
-- KEYS gen members
-- ARGV completion
-- Returns 'joined', 'completed' (it points to a finished answer), 'ended' (of no use) or 'gone'.
local gen, members = unpack(KEYS)
local h = redis.call('HMGET', gen, 'state', 'cancel', 'live', 'whole', 'deleted')
local state = h[1]
if not state then
  return 'gone'
end
if state == 'completed' then
  if not h[4] or h[5] then
    return 'ended'
  end
  redis.call('HSETNX', members, ARGV[1], '')
  local ttl = redis.call('PTTL', gen)
  if ttl > 0 then
    redis.call('PEXPIRE', members, ttl)
  end
  return state
end
if state == 'failed' or state == 'cancelled' or h[2] then
  return 'ended'
end
if redis.call('HSETNX', members, ARGV[1], '') == 1 then
  redis.call('HSET', gen, 'live', string.format('%d', (h[3] or 1) + 1))
end
return 'joined'
