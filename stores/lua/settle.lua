#!lua flags=allow-oom
-- What SQL has committed leaves the ledger, and the keys of ended generations get their TTL. The leader's lock fences
-- it.
-- KEYS lock ledger, then keys to expire
-- ARGV token entries, entry ids…, then a TTL in ms for each key to expire
-- Returns the number of entries removed, or -1 where the lock is somebody else's by now.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local entries = tonumber(ARGV[2])
for i = 3, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[entries + i])
end
local removed = 0
for i = 3, entries + 2 do
  removed = removed + redis.call('XDEL', KEYS[2], ARGV[i])
end
return removed
