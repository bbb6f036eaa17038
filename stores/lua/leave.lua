#!lua flags=allow-oom
-- A worker gives an attempt up and its generation goes on: last chunks, then it waits for the next attempt.
-- The same call again is a no-op.
-- KEYS gen log lease channel control recovery suspects parked
-- ARGV id fence first count items head pause_ms (0: at once) try ('1': the provider failed) skip suspicious record
-- Returns 1 (left), 0 (it had left already), 2 (not left: a cancel is asked for), -1 (stale attempt), -2 (gap).
-- use clock
-- use fence
-- use publish
-- use note
-- use wait
local gen, log, lease, channel, control, recovery, suspects, parked = unpack(KEYS)
local id, fence, first, count, items, head, pause_ms, try, skip, suspicious, record = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'call', 'next', 'skip', 'cancel', 'crashes')
if not current(fence, h[2], h[3]) then
  return -1
end
if h[1] ~= 'leased' then
  return (h[1] == 'queued' or h[1] == 'parked') and 0 or -1
end
if h[6] then
  return 2
end
if not publish(gen, log, channel, tonumber(h[4]), h[5], tonumber(first), tonumber(count), items, head) then
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
  local suspect = tonumber(h[7] or '0') >= tonumber(suspicious)
  wait(gen, lease, suspect and suspects or recovery, control, id, 'queued', 0, record, now)
end
return 1
