#!lua flags=allow-oom
-- Set a completion's metadata, where its generation or its pointer is still here.
-- KEYS gen ptr
-- ARGV metadata (JSON)
-- Returns 1 or 0.
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then
    redis.call('HSET', key, 'metadata', ARGV[1])
    return 1
  end
end
return 0
