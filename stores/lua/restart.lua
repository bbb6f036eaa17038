#!lua flags=allow-oom
-- What earlier attempts published is abandoned: a marker says where the chunks of this one begin, its base. Indexes are
-- never used again: where Redis may have lost chunks that somebody has read (`skip`), base goes far ahead.
-- The same call again is a no-op.
-- KEYS gen log channel
-- ARGV attempt skip_by
-- Returns the base, or -1 (stale attempt).
local gen, log, channel = unpack(KEYS)
local attempt, skip_by = ARGV[1], tonumber(ARGV[2])
local h = redis.call('HMGET', gen, 'state', 'attempt', 'next', 'base', 'skip', 'restarted')
if h[1] ~= 'leased' or h[2] ~= attempt then
  return -1
end
local next, base = tonumber(h[3]), tonumber(h[4])
if h[6] == attempt or (base == next and not h[5]) then
  return base
end
local entry = h[3] .. (base == next and next > 0 and '-2' or '-1')
base = h[5] and next + skip_by or next
local there = string.format('%d', base)
redis.call('XADD', log, entry, 'r', there)
redis.call('HSET', gen, 'base', there, 'next', there, 'restarted', attempt)
redis.call('HDEL', gen, 'head', 'skip')
redis.call('SPUBLISH', channel, entry .. ' r\n' .. there)
return base
