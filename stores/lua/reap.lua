#!lua flags=allow-oom
-- An attempt whose lease has run out is over: its generation waits for the next one. Not before workers have reached
-- Redis without a gap for long enough: leases run out in an outage, too.
-- KEYS gen lease recovery suspects control heard
-- ARGV id attempt crashes (allowed) suspicious (crashes that make a suspect) skip ('1': Redis may have lost chunks)
--   patience_ms (0: none) gap_ms record
--   record of the attempt, a JSON object that is left open
-- Returns 'recovering', 'crashed' (once too often: end it), 'cancelled' (a cancel is asked for: end it), 'held',
--   'gone', 'early'.
-- use clock
-- use note
-- use wait
local gen, lease, recovery, suspects, control, heard = unpack(KEYS)
local id, attempt, allowed, suspicious, skip, patience, gap, record = unpack(ARGV)
local h = redis.call('HMGET', gen, 'state', 'attempt', 'crashes', 'cancel')
if h[1] ~= 'leased' then
  redis.call('ZREM', lease, id)
  return h[1] and 'held' or 'gone'
end
local now = clock()
if h[2] ~= attempt or tonumber(redis.call('ZSCORE', lease, id) or '0') > now then
  return 'held'
end
if tonumber(patience) > 0 then
  local reached = redis.call('HMGET', heard, 'at', 'since')
  if not reached[1] or now - reached[1] > tonumber(gap) or now - reached[2] < tonumber(patience) then
    return 'early'
  end
end
if h[4] then
  return 'cancelled'
end
local crashes = tonumber(h[3] or '0') + 1
if crashes >= tonumber(allowed) then
  return 'crashed'
end
redis.call('HSET', gen, 'crashes', crashes)
if skip == '1' then
  redis.call('HSET', gen, 'skip', 1)
end
wait(gen, lease, crashes >= tonumber(suspicious) and suspects or recovery, control, id, 'queued', 0, record, now)
return 'recovering'
