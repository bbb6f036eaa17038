#!lua
-- A completion joins a generation, if that has a whole answer or still may get one, from the target that the
-- fingerprint names: none that failed over. The same call again changes nothing.
-- KEYS gen members deadlines
-- ARGV completion timeout_ms (0: no deadline) waits (the deadline's member of `deadlines`)
-- Returns 'joined', 'completed' (it points to a finished answer), 'ended' (of no use) or 'gone'; and the deadline (ms).
-- use clock
local gen, members, deadlines = unpack(KEYS)
local h = redis.call('HMGET', gen, 'state', 'cancel', 'live', 'whole', 'deleted', 'target')
local state = h[1]
if not state then
  return {'gone', 0}
end
if h[6] then
  return {'ended', 0}
end
if state == 'completed' then
  if not h[4] or h[5] then
    return {'ended', 0}
  end
  redis.call('HSETNX', members, ARGV[1], '')
  local ttl = redis.call('PTTL', gen)
  if ttl > 0 then
    redis.call('PEXPIRE', members, ttl)
  end
  return {state, 0}
end
if state == 'failed' or state == 'cancelled' or h[2] then
  return {'ended', 0}
end
if redis.call('HSETNX', members, ARGV[1], '') == 1 then
  redis.call('HSET', gen, 'live', string.format('%d', (h[3] or 1) + 1))
end
local due = 0
if tonumber(ARGV[2]) > 0 then
  due = clock() + ARGV[2]
  redis.call('ZADD', deadlines, 'NX', due, ARGV[3])
  due = tonumber(redis.call('ZSCORE', deadlines, ARGV[3]))
  redis.call('HSET', gen, 'timed', 1)
end
return {'joined', due}
