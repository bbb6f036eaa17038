#!lua flags=allow-oom
-- What earlier attempts published is abandoned: a marker says where the chunks of this one begin, its base. Indexes are
-- never used again: where Redis may have lost chunks that somebody has read (`skip`), base goes far ahead.
-- The same call again is a no-op.
-- KEYS gen log channel
-- ARGV fence skip_by
-- Returns the base, or -1 (stale attempt).
-- use fence
-- use place
local gen, log, channel = unpack(KEYS)
local fence, skip_by = ARGV[1], tonumber(ARGV[2])
local h = redis.call('HMGET', gen, 'state', 'attempt', 'call', 'next', 'base', 'skip', 'restarted', 'mark')
if h[1] ~= 'leased' or not current(fence, h[2], h[3]) then
  return -1
end
local next, base = tonumber(h[4]), tonumber(h[5])
if h[7] == h[2] or (base == next and not h[6]) then
  return base
end
local entry = place(h[4], h[5], h[8])
base = h[6] and next + skip_by or next
local there = string.format('%d', base)
redis.call('XADD', log, entry, 'r', there)
redis.call('HSET', gen, 'base', there, 'next', there, 'restarted', h[2])
if h[8] then
  redis.call('HSET', gen, 'mark', entry)
end
redis.call('HDEL', gen, 'head', 'skip')
redis.call('SPUBLISH', channel, entry .. ' r\n' .. there)
return base
