#!lua flags=allow-oom
-- Move ledger entries that can't be entered to the dead letters, each with the reason. Fenced by the leader's lock.
-- KEYS lock ledger dead
-- ARGV token, then entry id and reason for each
-- Returns the number of entries moved, or -1 where the lock is somebody else's by now.
local lock, ledger, dead = unpack(KEYS)
if redis.call('GET', lock) ~= ARGV[1] then
  return -1
end
local moved = 0
for i = 2, #ARGV, 2 do
  local entry = redis.call('XRANGE', ledger, ARGV[i], ARGV[i])[1]
  if entry then
    local fields = entry[2]
    fields[#fields + 1] = 'error'
    fields[#fields + 1] = ARGV[i + 1]
    redis.call('XADD', dead, '*', unpack(fields))
    redis.call('XDEL', ledger, ARGV[i])
    moved = moved + 1
  end
end
return moved
