#!lua flags=allow-oom
-- Append consecutive chunks to generations of one partition, each under its attempt, and ring their channels.
-- A repeated append is a no-op. Many generations go in one call, which costs the server more
-- than an append.
-- KEYS gen log channel, for each generation
-- ARGV fence first count items head ('' but for an attempt's first append), for each generation
-- Returns for each 0 (appended or repeated), 1 (the same, and a cancel is asked for), -1 (stale attempt), -2 (gap).
-- use fence
-- use publish
local out = {}
for i = 1, #KEYS / 3 do
  local k, a = 3 * i, 5 * i
  local gen = KEYS[k - 2]
  local h = redis.call('HMGET', gen, 'state', 'attempt', 'call', 'next', 'skip', 'cancel')
  if h[1] ~= 'leased' or not current(ARGV[a - 4], h[2], h[3]) then
    out[i] = -1
  elseif not publish(gen, KEYS[k - 1], KEYS[k], tonumber(h[4]), h[5], tonumber(ARGV[a - 3]),
      tonumber(ARGV[a - 2]), ARGV[a - 1], ARGV[a]) then
    out[i] = -2
  else
    out[i] = h[6] and 1 or 0
  end
end
return out
