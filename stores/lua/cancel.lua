#!lua flags=allow-oom
-- End a generation that waits, with a state of `cancelled` or `failed`: it never starts (again). A leased one is left to
-- its worker: told to cancel, by a flag and a message; past its deadline it looks itself.
-- KEYS gen req log ledger channel queued outbox control recovery suspects parked deadlines
-- ARGV id state end record
-- Returns the state (also where it was in it before), 'cancelling', 'leased', 'ended' (in another state) or 'gone'.
-- use clock
-- use finish
local gen, req, log, ledger, channel, queued, outbox, control, recovery, suspects, parked, deadlines = unpack(KEYS)
local id, state, ending, record = unpack(ARGV)
local was = redis.call('HGET', gen, 'state')
if not was then
  redis.call('ZREM', deadlines, id)
  return 'gone'
end
if was == 'leased' then
  if state ~= 'cancelled' then
    return was
  end
  redis.call('HSET', gen, 'cancel', 1)
  redis.call('SPUBLISH', control, 'cancel ' .. id .. ' ' .. redis.call('HGET', gen, 'attempt'))
  return 'cancelling'
end
if was ~= 'queued' and was ~= 'parked' then
  redis.call('ZREM', deadlines, id)
  return was == state and was or 'ended'
end
for _, waiting in ipairs({queued, recovery, suspects, parked, deadlines}) do
  redis.call('ZREM', waiting, id)
end
redis.call('HDEL', outbox, id)
finish(gen, req, log, ledger, channel, id, state, ending, record, clock())
return state
