#!lua flags=allow-oom
-- Renew all leases that one process holds in a partition. An expired lease is renewed too while its attempt is current.
-- KEYS lease gen…
-- ARGV lease_ms, then id fence for each gen
-- Returns for each gen 0 (renewed), 1 (renewed, cancel asked for) or -1 (lost).
-- use fence
local lease, lease_ms = KEYS[1], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local out = {}
for i = 2, #KEYS do
  local id, fence = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local h = redis.call('HMGET', KEYS[i], 'state', 'attempt', 'call', 'cancel')
  if h[1] == 'leased' and current(fence, h[2], h[3]) then
    redis.call('ZADD', lease, now + lease_ms, id)
    out[i - 1] = h[4] and 1 or 0
  else
    out[i - 1] = -1
  end
end
return out
