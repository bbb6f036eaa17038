#!lua
-- A completion joins a generation, if that has a whole answer or still may get one, from the target that the
-- fingerprint names: none that failed over. The same call again changes nothing.
-- KEYS gen members deadlines seq queued queued_bulk outbox: seq and queued are those of interactive work
-- ARGV completion timeout_ms (0: no deadline) waits (the deadline's member of `deadlines`) id
--   promote ('1': somebody waits for it, so bulk work becomes interactive)
-- Returns 'joined', 'completed' (it points to a finished answer), 'ended' (of no use) or 'gone'; the deadline (ms); and
--   of a promotion the number of the message to put, 0 where it needs none now, else -1.
-- use clock
local gen, members, deadlines, seq_key, queued, queued_bulk, outbox = unpack(KEYS)
local h = redis.call('HMGET', gen, 'state', 'cancel', 'live', 'whole', 'deleted', 'target', 'queue')
local state = h[1]
if not state then
  return {'gone', 0, -1}
end
if h[6] then
  return {'ended', 0, -1}
end
if state == 'completed' then
  if not h[4] or h[5] then
    return {'ended', 0, -1}
  end
  redis.call('HSETNX', members, ARGV[1], '')
  local ttl = redis.call('PTTL', gen)
  if ttl > 0 then
    redis.call('PEXPIRE', members, ttl)
  end
  return {state, 0, -1}
end
if state == 'failed' or state == 'cancelled' or h[2] then
  return {'ended', 0, -1}
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
local seq = -1
if ARGV[5] == '1' and h[7] == 'bulk' then
  seq = 0
  redis.call('HSET', gen, 'queue', 'interactive')
  if redis.call('ZREM', queued_bulk, ARGV[4]) == 1 then
    seq = redis.call('INCR', seq_key)
    redis.call('HSET', gen, 'seq', seq)
    redis.call('ZADD', queued, seq, ARGV[4])
    redis.call('HSET', outbox, ARGV[4], 'interactive ' .. seq .. ' ' .. string.format('%d', clock()))
  end
end
return {'joined', due, seq}
