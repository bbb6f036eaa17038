#!lua flags=allow-oom
-- A completion of an ended generation is deleted. State and log go with the last completion that points to them.
-- KEYS gen log members
-- ARGV generation completion
-- Returns 1 where they went, or 0.
local gen, log, members = unpack(KEYS)
if ARGV[1] ~= ARGV[2] then
  redis.call('HDEL', members, ARGV[2])
elseif redis.call('EXISTS', gen) == 1 then
  redis.call('HSET', gen, 'deleted', 1)
end
if redis.call('HEXISTS', gen, 'deleted') == 0 or redis.call('EXISTS', members) == 1 then
  return 0
end
redis.call('DEL', gen, log)
return 1
