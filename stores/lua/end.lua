#!lua flags=allow-oom
-- End a generation: last chunks, end entry, ledger record, all in one step. The same end again is a no-op.
-- KEYS gen req log lease ledger channel deadlines members
-- ARGV id fence first count items head state end record expired_only whole
--   count 0: no chunks, and the log stands at first at least. expired_only '1': only if the attempt's lease ran out.
--   whole: how many choices a whole answer has, for others to be answered by it; '0'
-- Returns 1 (ended), 0 (this attempt had ended it already), -1 (stale attempt, or its lease lives), -2 (gap; also a
--   whole answer where Redis may have lost chunks and the attempt did not restart since).
-- use clock
-- use fence
-- use publish
-- use place
-- use finish
local gen, req, log, lease, ledger, channel, deadlines, members = unpack(KEYS)
local id, fence, first, count, items, head, state, ending, record, expired_only, whole = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'call', 'next', 'skip')
if not current(fence, h[2], h[3]) then
  return -1
end
if h[1] ~= 'leased' then
  return h[1] == state and 0 or -1
end
local now = clock()
if expired_only == '1' and tonumber(redis.call('ZSCORE', lease, id) or '0') > now then
  return -1
end
if h[5] and state == 'completed' then
  return -2
end
if not publish(gen, log, channel, tonumber(h[4]), h[5], tonumber(first), tonumber(count), items, head) then
  return -2
end
redis.call('ZREM', lease, id)
finish(gen, req, log, ledger, channel, deadlines, members, id, state, ending, record, now)
if whole ~= '0' then
  redis.call('HSET', gen, 'whole', whole)
end
return 1
