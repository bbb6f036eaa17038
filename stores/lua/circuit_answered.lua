#!lua flags=allow-oom
-- A provider answered: its circuit is closed, and its failures are forgotten.
-- KEYS circuit control
-- ARGV
-- Returns 1, or 0 where there was nothing to forget.
local there = redis.call('DEL', KEYS[1])
if there == 1 then
  redis.call('SPUBLISH', KEYS[2], 'circuits')
end
return there
