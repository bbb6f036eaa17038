#!lua flags=allow-oom
-- The flight of a fingerprint, while it is this generation's, gets a TTL; or (0) goes.
-- KEYS flight
-- ARGV generation ttl_ms
-- Returns 1, or 0 where it is another's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
