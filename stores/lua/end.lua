#!lua flags=allow-oom
-- End a generation: last chunks, end entry, ledger record, all in one step. The same end again is a no-op.
-- KEYS gen req log lease ledger channel
-- ARGV id attempt first count items head state end record expired_only
--   count 0: no chunks, first doesn't matter. expired_only '1': only if the attempt's lease has run out.
-- Returns 1 (ended), 0 (this attempt had ended it already), -1 (stale attempt, or its lease lives), -2 (gap).
local gen, req, log, lease, ledger, channel = unpack(KEYS)
local id, attempt, first, count, items, head, state, ending, record, expired_only = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'next', 'base', 'created_ms', 'leased_ms', 'first_chunk_ms')
if h[2] ~= attempt then
  return -1
end
if h[1] ~= 'leased' then
  return h[1] == state and 0 or -1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if expired_only == '1' and tonumber(redis.call('ZSCORE', lease, id) or '0') > now then
  return -1
end
local next = tonumber(h[3])
local first_chunk_ms = h[7]
count = tonumber(count)
if count > 0 and first + count > next then
  if tonumber(first) ~= next then
    return -2
  end
  next = next + count
  local entry = string.format('%d', next) .. '-0'
  redis.call('XADD', log, entry, 'c', items)
  if head == '' then
    redis.call('SPUBLISH', channel, entry .. ' c\n' .. items)
  else
    first_chunk_ms = first_chunk_ms or string.format('%d', now)
    redis.call('HSET', gen, 'head', head, 'first_chunk_ms', first_chunk_ms)
    redis.call('SPUBLISH', channel, entry .. ' h\n' .. head .. '\n' .. items)
  end
end
local entry = string.format('%d', next) .. '-1'
redis.call('XADD', log, entry, 'e', ending)
redis.call('HSET', gen, 'state', state, 'next', next, 'end', ending, 'ended_ms', now)
redis.call('HDEL', gen, 'cancel', 'worker', 'call')
redis.call('DEL', req)
redis.call('ZREM', lease, id)
redis.call('XADD', ledger, '*', 'r', record .. ',"attempt":' .. attempt .. ',"base":' .. h[4]
  .. ',"next":' .. string.format('%d', next) .. ',"created_ms":' .. h[5] .. ',"leased_ms":' .. h[6]
  .. (first_chunk_ms and ',"first_chunk_ms":' .. first_chunk_ms or '')
  .. ',"ended_ms":' .. string.format('%d', now) .. '}')
redis.call('SPUBLISH', channel, entry .. ' e\n' .. ending)
return 1
