#!lua flags=allow-oom
-- An attempt turns to another provider, before its first chunk. With the record of a call that failed it is over, and
-- the same worker has the next one under the same lease. The same call again is a no-op.
-- KEYS gen
-- ARGV fence target record call
--   target: JSON, '' the first one; record: a JSON object that is left open, '' where no provider was asked yet
-- Returns the attempt's number, 0 (not done: a cancel is asked for) or -1 (stale attempt).
-- use clock
-- use fence
-- use note
local gen = KEYS[1]
local fence, target, record, call = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'call', 'cancel')
if h[1] ~= 'leased' then
  return -1
end
local attempt = tonumber(h[2])
if record ~= '' and h[3] == call and attempt == tonumber(string.match(fence, '^%d+')) + 1 then
  return attempt
end
if not current(fence, h[2], h[3]) then
  return -1
end
if h[4] then
  return 0
end
if target == '' then
  redis.call('HDEL', gen, 'target')
else
  redis.call('HSET', gen, 'target', target)
end
if record == '' then
  return attempt
end
local now = clock()
note(gen, record, now)
redis.call('HSET', gen, 'attempt', attempt + 1, 'call', call, 'attempt_ms', now)
return attempt + 1
