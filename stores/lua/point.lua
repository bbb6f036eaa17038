#!lua
-- Accept a completion that points to another one's generation: its pointer and its record in one step. The same id
-- again changes nothing.
-- KEYS ptr gen ledger
-- ARGV record, a JSON object that is left open
-- Returns the record as it was accepted, or nil where the id is that of a generation.
-- use clock
local ptr, gen, ledger = unpack(KEYS)
if redis.call('EXISTS', gen) == 1 then
  return nil
end
local known = redis.call('HGET', ptr, 'info')
if known then
  return known
end
local info = ARGV[1] .. ',"created_ms":' .. string.format('%d', clock()) .. '}'
redis.call('HSET', ptr, 'info', info)
redis.call('XADD', ledger, '*', 'r', info)
return info
