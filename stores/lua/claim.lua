#!lua flags=allow-oom
-- Claim a generation for a worker: a lease and a new attempt number. A live lease, an end or no state: nothing happens.
-- `call` is unique to a call: made again because its answer was lost, it is given the attempt that it had been given.
-- KEYS gen req lease queued mark outbox
-- ARGV id worker lease_ms seq call
-- Returns {'claimed', attempt, next, base, created_ms, request, info}, or {'gone' | 'ended' | 'held' | 'newer'}.
local gen, req, lease, queued, mark, outbox = unpack(KEYS)
local id, worker, lease_ms, seq, call = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
if seq > 0 and seq > tonumber(redis.call('GET', mark) or '0') then
  redis.call('SET', mark, seq)
end
local h = redis.call('HMGET', gen, 'v', 'state', 'attempt', 'next', 'base', 'created_ms', 'info', 'leased_ms', 'call')
local state = h[2]
if not state then
  redis.call('ZREM', queued, id)
  redis.call('HDEL', outbox, id)
  return {'gone'}
end
if tonumber(h[1]) > 1 then
  return {'newer'}
end
if state == 'completed' or state == 'failed' or state == 'cancelled' then
  return {'ended'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt = tonumber(h[3])
if state ~= 'leased' or h[9] ~= call then
  if state == 'leased' and tonumber(redis.call('ZSCORE', lease, id) or '0') > now then
    return {'held'}
  end
  attempt = attempt + 1
  redis.call('HSET', gen, 'state', 'leased', 'attempt', attempt, 'worker', worker, 'call', call)
  if not h[8] then
    redis.call('HSET', gen, 'leased_ms', now)
  end
end
redis.call('ZADD', lease, now + lease_ms, id)
redis.call('ZREM', queued, id)
redis.call('HDEL', outbox, id)  -- its message came, so it is out, whether its producer lived to clear this or not
return {'claimed', attempt, tonumber(h[4]), tonumber(h[5]), tonumber(h[6]), redis.call('GET', req), h[7]}
