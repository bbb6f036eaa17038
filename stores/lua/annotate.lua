#!lua flags=allow-oom
-- Set a generation's metadata, if its state is still here.
-- KEYS gen
-- ARGV metadata (JSON)
-- Returns 1 or 0.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'metadata', ARGV[1])
return 1
