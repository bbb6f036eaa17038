#!lua flags=allow-oom
-- Cancel a generation. Queued: it ends here and never starts. Leased: a flag for its worker, and a message to it.
-- KEYS gen req log ledger channel queued outbox control
-- ARGV id end record
-- Returns 'cancelled' (also where it was before), 'cancelling', 'ended' or 'gone'.
local gen, req, log, ledger, channel, queued, outbox, control = unpack(KEYS)
local id, ending, record = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'next', 'base', 'created_ms', 'leased_ms', 'first_chunk_ms')
local state = h[1]
if not state then
  return 'gone'
end
if state == 'leased' then
  redis.call('HSET', gen, 'cancel', 1)
  redis.call('SPUBLISH', control, 'cancel ' .. id .. ' ' .. h[2])
  return 'cancelling'
end
if state ~= 'queued' and state ~= 'parked' then
  return state == 'cancelled' and state or 'ended'
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entry = h[3] .. '-1'
redis.call('XADD', log, entry, 'e', ending)
redis.call('HSET', gen, 'state', 'cancelled', 'end', ending, 'ended_ms', now)
redis.call('DEL', req)
redis.call('ZREM', queued, id)
redis.call('HDEL', outbox, id)
redis.call('XADD', ledger, '*', 'r', record .. ',"attempt":' .. h[2] .. ',"base":' .. h[4] .. ',"next":' .. h[3]
  .. ',"created_ms":' .. h[5] .. (h[6] and ',"leased_ms":' .. h[6] or '')
  .. (h[7] and ',"first_chunk_ms":' .. h[7] or '') .. ',"ended_ms":' .. string.format('%d', now) .. '}')
redis.call('SPUBLISH', channel, entry .. ' e\n' .. ending)
return 'cancelled'
