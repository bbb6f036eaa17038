#!lua flags=allow-oom
-- Append consecutive chunks to generations of one partition, each under its attempt number, and ring their channels.
-- A repeated append is a no-op. Many generations go in one call: the server's cost of a call is larger than of an append.
-- KEYS gen log channel, for each generation
-- ARGV attempt first count items head ('' but for an attempt's first append), for each generation
-- Returns for each 0 (appended or repeated), 1 (the same, and a cancel is asked for), -1 (stale attempt), -2 (gap).
local call, format = redis.call, string.format
local out = {}

local function append(gen, log, channel, attempt, first, count, items, head)
  local h = call('HMGET', gen, 'state', 'attempt', 'next', 'cancel')
  if h[1] ~= 'leased' or h[2] ~= attempt then
    return -1
  end
  local ok = h[4] and 1 or 0
  local last = first + count
  if h[3] ~= first then
    if last <= tonumber(h[3]) then
      return ok
    end
    return -2
  end
  local id = format('%d', last) .. '-0'
  call('XADD', log, id, 'c', items)
  if head == '' then
    call('HSET', gen, 'next', last)
    call('SPUBLISH', channel, id .. ' c\n' .. items)
  else
    local time = call('TIME')
    call('HSET', gen, 'next', last, 'head', head)
    call('HSETNX', gen, 'first_chunk_ms', time[1] * 1000 + math.floor(time[2] / 1000))
    call('SPUBLISH', channel, id .. ' h\n' .. head .. '\n' .. items)
  end
  return ok
end

for i = 1, #KEYS / 3 do
  local k, a = 3 * i, 5 * i
  out[i] = append(KEYS[k - 2], KEYS[k - 1], KEYS[k], ARGV[a - 4], ARGV[a - 3], ARGV[a - 2], ARGV[a - 1], ARGV[a])
end
return out
