#!lua flags=allow-oom
-- Put dead letters back on the ledger, without the reason why they were taken off it.
-- KEYS dead ledger
-- ARGV entry ids
-- Returns the number of entries moved.
local dead, ledger = unpack(KEYS)
local moved = 0
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', dead, id, id)[1]
  if entry then
    local fields = entry[2]
    fields[#fields] = nil
    fields[#fields] = nil
    redis.call('XADD', ledger, '*', unpack(fields))
    redis.call('XDEL', dead, id)
    moved = moved + 1
  end
end
if redis.call('XLEN', dead) == 0 then
  redis.call('DEL', dead)
end
return moved
