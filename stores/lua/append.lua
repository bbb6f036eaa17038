#!lua flags=allow-oom
-- Append consecutive chunks under an attempt number, and ring the channel. A repeated append is a no-op.
-- KEYS gen log channel
-- ARGV attempt first count items head ('' but for the attempt's first append)
-- Returns 0 (appended or repeated), 1 (the same, and a cancel is asked for), -1 (stale attempt), -2 (gap).
local gen, log, channel = KEYS[1], KEYS[2], KEYS[3]
local h = redis.call('HMGET', gen, 'state', 'attempt', 'next', 'cancel')
if h[1] ~= 'leased' or h[2] ~= ARGV[1] then
  return -1
end
local first, last = tonumber(ARGV[2]), ARGV[2] + ARGV[3]
local ok = h[4] and 1 or 0
if h[3] ~= ARGV[2] then
  if last <= tonumber(h[3]) then
    return ok
  end
  return -2
end
local items, head = ARGV[4], ARGV[5]
local id = string.format('%d', last) .. '-0'
redis.call('XADD', log, id, 'c', items)
if head == '' then
  redis.call('HSET', gen, 'next', last)
  redis.call('SPUBLISH', channel, id .. ' c\n' .. items)
else
  local time = redis.call('TIME')
  redis.call('HSET', gen, 'next', last, 'head', head)
  redis.call('HSETNX', gen, 'first_chunk_ms', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('SPUBLISH', channel, id .. ' h\n' .. head .. '\n' .. items)
end
return ok
