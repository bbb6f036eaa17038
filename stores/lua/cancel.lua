#!lua flags=allow-oom
-- End a generation that waits, with a state of `cancelled` or `failed`: it never starts (again). A leased one is left
-- to its worker: told to cancel, by a flag and a message; past its deadline it looks itself. Where other completions
-- share the generation, only `who` ends: by a marker in the log, a note for later readers and a record of its own.
-- The others' goes on.
-- KEYS gen req log ledger channel queued queued_elsewhere outbox control recovery suspects parked deadlines members
-- ARGV id state end record who info due ('1': the deadline is not the generation's, but that of `who`)
--   end: what the end entry says; record: of the end, a JSON object that is left open
--   info: the record of `who`'s acceptance, '' for the one that created the generation
-- Returns the state (also where it was in it before), 'left' (also where it had left), 'cancelling', 'leased',
--   'ended' (in another state) or 'gone'.
-- use clock
-- use place
-- use finish
local gen, req, log, ledger, channel, queued, elsewhere, outbox, control, recovery, suspects, parked, deadlines,
  members = unpack(KEYS)
local id, state, ending, record, who, info, due = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'live', 'own', 'next', 'base', 'mark', 'attempt', 'info')
local was = h[1]
if due == '1' then
  redis.call('ZREM', deadlines, id .. '/' .. who)
end
if not was then
  redis.call('ZREM', deadlines, id)
  return 'gone'
end
local own = h[3]
if who ~= id then
  own = redis.call('HGET', members, who)
  if not own then
    return 'gone'
  end
end
if own and own ~= '' then
  return 'left'
end
if was ~= 'queued' and was ~= 'parked' and was ~= 'leased' then
  redis.call('ZREM', deadlines, id)
  return was == state and was or 'ended'
end
local live = tonumber(h[2] or '1')
if live > 1 or (due == '1' and was == 'leased') then
  local now = string.format('%d', clock())
  local tail = ',"tail":' .. h[4] .. ',"ended_ms":' .. now .. '}'
  local entry = place(h[4], h[5], h[6])
  own = string.sub(ending, 1, -2) .. tail
  if who == id then
    redis.call('HSET', gen, 'own', own)
  else
    redis.call('HSET', members, who, own)
  end
  redis.call('HSET', gen, 'live', string.format('%d', live - 1), 'mark', entry)
  local marker = '{"id":"' .. who .. '",' .. string.sub(own, 2)
  redis.call('XADD', log, entry, 'l', marker)
  redis.call('XADD', ledger, '*', 'r', '{"t":"departed","state":"' .. state .. '","accepted":'
    .. (info == '' and h[8] or info) .. tail)
  redis.call('SPUBLISH', channel, entry .. ' l\n' .. marker)
  if live == 1 then
    redis.call('HSET', gen, 'cancel', 1)
    redis.call('SPUBLISH', control, 'cancel ' .. id .. ' ' .. h[7])
  end
  return 'left'
end
if was == 'leased' then
  if state ~= 'cancelled' then
    return was
  end
  redis.call('HSET', gen, 'cancel', 1)
  redis.call('SPUBLISH', control, 'cancel ' .. id .. ' ' .. h[7])
  return 'cancelling'
end
for _, waiting in ipairs({queued, elsewhere, recovery, suspects, parked}) do
  redis.call('ZREM', waiting, id)
end
redis.call('HDEL', outbox, id)
finish(gen, req, log, ledger, channel, deadlines, members, id, state, ending, record, clock())
return state
