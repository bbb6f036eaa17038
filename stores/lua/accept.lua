#!lua
-- Accept one completion and its generation: state and outbox in one step. The same id again changes nothing. `call` is
-- unique to a call: made again because its answer was lost, it is told what it was told.
-- KEYS gen req outbox ledger seq queued deadlines
-- ARGV id queue request record timeout_ms (0: no deadline) call waits (the deadline's member of `deadlines`) skip
--   skip '1': Redis had it before, and lost it: what is published from now on begins far ahead of what somebody may have
--   read
-- Returns {1, created_ms, seq}, or {0, created_ms, seq} where the generation is there already.
-- use clock
local gen, req, outbox, ledger, seq_key, queued, deadlines = unpack(KEYS)
local id, queue, request, record, timeout_ms, call, waits, skip = unpack(ARGV)
local known = redis.call('HMGET', gen, 'created_ms', 'seq', 'call')
if known[1] then
  return {known[3] == call and 1 or 0, tonumber(known[1]), tonumber(known[2])}
end
local now = clock()
local seq = redis.call('INCR', seq_key)
local info = record .. ',"created_ms":' .. string.format('%d', now)
if tonumber(timeout_ms) > 0 then
  info = info .. ',"deadline_ms":' .. string.format('%d', now + timeout_ms)
  redis.call('ZADD', deadlines, now + timeout_ms, waits)
end
info = info .. '}'
redis.call('HSET', gen, 'v', 1, 'state', 'queued', 'queue', queue, 'seq', seq, 'attempt', 0, 'next', 0, 'base', 0,
  'created_ms', now, 'info', info, 'call', call)
if skip == '1' then
  redis.call('HSET', gen, 'skip', 1)
end
redis.call('SET', req, request)
redis.call('HSET', outbox, id, queue .. ' ' .. seq .. ' ' .. string.format('%d', now))
redis.call('ZADD', queued, seq, id)
redis.call('XADD', ledger, '*', 'r', info)
return {1, now, seq}
