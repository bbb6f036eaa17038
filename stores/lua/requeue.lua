#!lua flags=allow-oom
-- A new message for work that waits: parked and due by now or called before, or queued under the number `seq` whose
-- message was lost.
-- KEYS gen parked seq queued outbox
-- ARGV id queue seq ('0': parked work; '-1': also before it is due)
-- Returns the new message's number, or 0 where there is nothing to do.
-- use clock
local gen, parked, seq_key, queued, outbox = unpack(KEYS)
local id, queue, lost = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'seq')
local now = clock()
if lost == '0' or lost == '-1' then
  local due = redis.call('ZSCORE', parked, id)
  if h[1] ~= 'parked' then
    redis.call('ZREM', parked, id)
    return 0
  elseif lost == '0' and due and tonumber(due) > now then
    return 0
  end
elseif h[1] ~= 'queued' or h[2] ~= lost or not redis.call('ZSCORE', queued, id) then
  if not h[1] then
    redis.call('ZREM', queued, id)
  end
  return 0
end
local seq = redis.call('INCR', seq_key)
redis.call('HSET', gen, 'state', 'queued', 'seq', seq)
redis.call('ZREM', parked, id)
redis.call('ZADD', queued, seq, id)
redis.call('HSET', outbox, id, queue .. ' ' .. seq .. ' ' .. string.format('%d', now))
return seq
