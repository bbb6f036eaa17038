#!lua flags=allow-oom
-- The limits of one API key: requests and tokens in a sliding window, completions at once, those that wait for their
-- first worker and the bytes of their requests, and money in a month.
-- KEYS state window, then open waiting charged: completions by when they came (ms), until they are known to have ended,
--   to have begun, to be in the books
-- ARGV window_ms operation, then by operation:
--   admit  rpm tpm concurrent queued queued_bytes budget (0: no limit) month id tokens bytes cost
--          -> {verdict, ms until another try is worth it, requests left, ms until all are, tokens left, likewise}
--          verdict: ok, the name of a limit that is reached, or refresh: what is spent is not known, or not any more
--   settle id tokens: a completion of the window used so many
--   began  id…     ended  id…
--   spend  month, then id cost: they are in the books
--   spent  month cost, then id: all of the month that is in the books, and what of `charged` it has
-- use clock
local state, window, open, waiting, charged = unpack(KEYS)
local window_ms, operation = tonumber(ARGV[1]), ARGV[2]
local now = clock()
-- What is in the books is looked up at least so often while there is a budget; nothing is kept here for longer.
local FRESH_MS, KEEP_MS = 1000, 604800000

local function number(field)
  return tonumber(redis.call('HGET', state, field) or '0')
end

local function forget(kind, sum, id)
  local amount = redis.call('HGET', state, kind .. id)
  if amount then
    redis.call('HINCRBY', state, sum, 0 - amount)
    redis.call('HDEL', state, kind .. id)
  end
end

local function leave(id)
  if redis.call('ZREM', waiting, id) == 1 then
    forget('bytes:', 'bytes', id)
  end
end

local function ms_until_first(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return first[2] and math.max(1, first[2] + window_ms - now) or 0
end

-- Milliseconds until so many tokens have left the window.
local function ms_until_left(wanted)
  local entries = redis.call('ZRANGE', window, 0, -1, 'WITHSCORES')
  for at = 1, #entries, 2 do
    wanted = wanted - number('tokens:' .. entries[at])
    if wanted <= 0 then
      return math.max(1, entries[at + 1] + window_ms - now)
    end
  end
  return window_ms
end

local function admit()
  local rpm, tpm, concurrent, queued, queued_bytes, budget = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]),
    tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
  local month, id, tokens, bytes, cost = ARGV[9], ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
  for _, old in ipairs(redis.call('ZRANGE', window, '-inf', now - window_ms, 'BYSCORE')) do
    redis.call('ZREM', window, old)
    forget('tokens:', 'tokens', old)
  end
  tokens = tpm > 0 and math.min(tokens, tpm) or 0
  local used, requests, verdict, wait = number('tokens'), redis.call('ZCARD', window), 'ok', 0
  local known = redis.call('ZSCORE', window, id) or redis.call('ZSCORE', open, id)
    or redis.call('ZSCORE', charged, id)
  if not known then
    if rpm > 0 and requests >= rpm then
      verdict, wait = 'rpm', ms_until_first(window)
    elseif tpm > 0 and used + tokens > tpm then
      verdict, wait = 'tpm', ms_until_left(used + tokens - tpm)
    elseif concurrent > 0 and redis.call('ZCARD', open) >= concurrent then
      verdict = 'concurrent'
    elseif queued > 0 and redis.call('ZCARD', waiting) >= queued then
      verdict = 'queued'
    elseif queued_bytes > 0 and redis.call('ZCARD', waiting) > 0 and number('bytes') + bytes > queued_bytes then
      verdict = 'queued_bytes'
    elseif budget > 0 then
      local h = redis.call('HMGET', state, 'month', 'spent', 'looked')
      if h[1] ~= month or now - h[3] > FRESH_MS then
        verdict = 'refresh'
      elseif h[2] + number('reserved') + cost > budget then
        verdict, wait = 'budget', number('reserved') > 0 and FRESH_MS or 0
      end
    end
    if verdict == 'ok' then
      if rpm > 0 or tpm > 0 then
        redis.call('ZADD', window, now, id)
        requests = requests + 1
      end
      if tpm > 0 then
        redis.call('HSET', state, 'tokens:' .. id, tokens)
        used = redis.call('HINCRBY', state, 'tokens', tokens)
      end
      if concurrent > 0 then
        redis.call('ZADD', open, now, id)
      end
      if queued > 0 or queued_bytes > 0 then
        redis.call('ZADD', waiting, now, id)
        redis.call('HSET', state, 'bytes:' .. id, bytes)
        redis.call('HINCRBY', state, 'bytes', bytes)
      end
      if budget > 0 then
        redis.call('ZADD', charged, now, id)
        redis.call('HSET', state, 'cost:' .. id, string.format('%d', cost))
        redis.call('HINCRBY', state, 'reserved', string.format('%d', cost))
      end
    end
    for _, key in ipairs(KEYS) do
      redis.call('PEXPIRE', key, key == window and window_ms or KEEP_MS)
    end
  end
  local newest = redis.call('ZRANGE', window, -1, -1, 'WITHSCORES')
  local reset = newest[2] and math.max(0, newest[2] + window_ms - now) or 0
  return {verdict, wait, math.max(0, rpm - requests), reset, math.max(0, tpm - used), reset}
end

if operation == 'admit' then
  return admit()
elseif operation == 'settle' then
  local id, used = ARGV[3], tonumber(ARGV[4])
  local reserved = redis.call('HGET', state, 'tokens:' .. id)
  if reserved then
    redis.call('HSET', state, 'tokens:' .. id, used)
    redis.call('HINCRBY', state, 'tokens', used - reserved)
  end
elseif operation == 'began' or operation == 'ended' then
  for at = 3, #ARGV do
    leave(ARGV[at])
    if operation == 'ended' then
      redis.call('ZREM', open, ARGV[at])
    end
  end
elseif operation == 'spend' then
  for at = 4, #ARGV, 2 do
    if redis.call('ZREM', charged, ARGV[at]) == 1 then
      forget('cost:', 'reserved', ARGV[at])
      if redis.call('HGET', state, 'month') == ARGV[3] then
        redis.call('HINCRBY', state, 'spent', ARGV[at + 1])
      end
    end
  end
  redis.call('HSET', state, 'looked', now)
elseif operation == 'spent' and redis.call('HGET', state, 'month') ~= ARGV[3] then
  redis.call('HSET', state, 'month', ARGV[3], 'spent', ARGV[4], 'looked', now)
  for at = 5, #ARGV do
    redis.call('ZREM', charged, ARGV[at])
    forget('cost:', 'reserved', ARGV[at])
  end
end
return {}
