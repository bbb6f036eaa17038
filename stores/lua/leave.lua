#!lua flags=allow-oom
-- A worker gives an attempt up and its generation goes on: last chunks, then it waits for the next attempt.
-- The same call again is a no-op.
-- KEYS gen log lease channel control recovery suspects parked
-- ARGV id attempt first count items head pause_ms (0: at once) try ('1': the provider failed) skip suspicious record
-- Returns 1 (left), 0 (it had left already), 2 (not left: a cancel is asked for), -1 (stale attempt), -2 (gap).
-- use clock
-- use publish
-- use wait
local gen, log, lease, channel, control, recovery, suspects, parked = unpack(KEYS)
local id, attempt, first, count, items, head, pause_ms, try, skip, suspicious, record = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'next', 'cancel', 'crashes')
if h[2] ~= attempt then
  return -1
end
if h[1] ~= 'leased' then
  return (h[1] == 'queued' or h[1] == 'parked') and 0 or -1
end
if h[4] then
  return 2
end
if not publish(gen, log, channel, tonumber(h[3]), tonumber(first), tonumber(count), items, head) then
  return -2
end
if try == '1' then
  redis.call('HINCRBY', gen, 'tries', 1)
end
if skip == '1' then
  redis.call('HSET', gen, 'skip', 1)
end
local now = clock()
if tonumber(pause_ms) > 0 then
  wait(gen, lease, parked, control, id, 'parked', now + pause_ms, record, now)
else
  local suspect = tonumber(h[5] or '0') >= tonumber(suspicious)
  wait(gen, lease, suspect and suspects or recovery, control, id, 'queued', 0, record, now)
end
return 1
