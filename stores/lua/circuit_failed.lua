#!lua flags=allow-oom
-- A provider did not answer a call. Enough of them in a row open its circuit; a probe that fails closes the door again.
-- KEYS circuit control
-- ARGV allowed (0: it never opens) pause_ms token ttl_ms reason
-- Returns {failures, milliseconds until a probe may be let through, or -1: the circuit is closed}.
-- use clock
local circuit, control = KEYS[1], KEYS[2]
local allowed, pause_ms, token, ttl_ms, reason = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local now = clock()
local failures = redis.call('HINCRBY', circuit, 'failures', 1)
local h = redis.call('HMGET', circuit, 'until', 'probe')
local opens = h[1] and tonumber(h[1])
redis.call('HSET', circuit, 'reason', reason)
if opens and h[2] == token or not opens and allowed > 0 and failures >= allowed then
  if not opens then
    redis.call('HSET', circuit, 'since', now)
  end
  opens = now + pause_ms
  redis.call('HSET', circuit, 'until', opens)
  redis.call('HDEL', circuit, 'probe', 'probe_until')
  redis.call('SPUBLISH', control, 'circuits')
elseif failures == 1 then
  redis.call('SPUBLISH', control, 'circuits')  -- whoever is answered next is to say so
end
redis.call('PEXPIRE', circuit, ttl_ms)
return {failures, opens and math.max(opens - now, 0) or -1}
