#!lua flags=allow-oom
-- May this call go to a provider whose circuit is open? One at a time may, as a probe, once the pause is over.
-- Whoever has the probe asks again to keep it, and with hold_ms 0 gives it back.
-- KEYS circuit
-- ARGV token hold_ms ttl_ms
-- Returns 0 (it may; also where the circuit is closed), else milliseconds until it may ask again.
-- use clock
local circuit = KEYS[1]
local token, hold_ms, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local h = redis.call('HMGET', circuit, 'until', 'probe', 'probe_until')
if not h[1] then
  return 0
end
local now = clock()
if hold_ms == 0 then
  if h[2] == token then
    redis.call('HDEL', circuit, 'probe', 'probe_until')
  end
  return 0
end
if h[2] ~= token then
  local free = math.max(tonumber(h[1]), tonumber(h[3] or '0'))
  if free > now then
    return free - now
  end
end
redis.call('HSET', circuit, 'probe', token, 'probe_until', now + hold_ms)
redis.call('PEXPIRE', circuit, ttl_ms)
return 0
