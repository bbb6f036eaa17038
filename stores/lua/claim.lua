#!lua flags=allow-oom
-- Claim a queued generation for a worker: a lease and a new attempt number. Held, parked, ended or without state:
-- nothing happens. `call` is unique to a call: made again because its answer was lost, it is given the attempt that
-- it had.
-- KEYS gen req lease queued queued_elsewhere mark outbox recovery suspects
--   queued_elsewhere: of the other queue; a promotion may have moved it there since its message was put
-- ARGV id worker lease_ms seq call
-- Returns {'claimed', attempt, next, base, created_ms, request, info, tries, waited_ms, skip, head, call, target, queue},
--   or {'gone' | 'ended' | 'held' | 'parked' | 'newer'}.
-- use clock
local gen, req, lease, queued, elsewhere, mark, outbox, recovery, suspects = unpack(KEYS)
local id, worker, lease_ms, seq, call = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
if seq > 0 and seq > tonumber(redis.call('GET', mark) or '0') then
  redis.call('SET', mark, seq)
end
local h = redis.call('HMGET', gen, 'v', 'state', 'attempt', 'next', 'base', 'created_ms', 'info', 'leased_ms', 'call',
  'tries', 'skip', 'head', 'target', 'queue')
local state = h[2]
if not state then
  for _, waiting in ipairs({queued, elsewhere, recovery, suspects}) do
    redis.call('ZREM', waiting, id)
  end
  redis.call('HDEL', outbox, id)
  redis.call('DEL', req)
  return {'gone'}
end
if tonumber(h[1]) > 1 then
  return {'newer'}
end
if state == 'completed' or state == 'failed' or state == 'cancelled' then
  return {'ended'}
end
if state == 'parked' then
  return {'parked'}
end
local now = clock()
local attempt = tonumber(h[3])
if state ~= 'leased' then
  attempt = attempt + 1
  redis.call('HSET', gen, 'state', 'leased', 'attempt', attempt, 'worker', worker, 'call', call, 'attempt_ms', now)
  if not h[8] then
    redis.call('HSET', gen, 'leased_ms', now)
  end
elseif h[9] ~= call then
  return {'held'}
end
redis.call('ZADD', lease, now + lease_ms, id)
redis.call('ZREM', queued, id)
redis.call('ZREM', elsewhere, id)
redis.call('HDEL', outbox, id)  -- its message came, so it is out, whether its producer lived to clear this or not
if attempt > 1 then
  redis.call('ZREM', recovery, id)
  redis.call('ZREM', suspects, id)
end
return {'claimed', attempt, tonumber(h[4]), tonumber(h[5]), tonumber(h[6]), redis.call('GET', req), h[7],
  tonumber(h[10] or '0'), h[8] and now - h[8] or 0, h[11] and 1 or 0, h[12] or '', call, h[13] or '', h[14]}
