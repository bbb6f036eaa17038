#!lua flags=allow-oom
-- The permits of one provider, for all workers: calls at once, and calls and tokens in a sliding window.
--
-- A call counts in the window from when it is granted until a window after the latest moment at which the provider may
-- have seen it: `use_ms` after the grant, moved back to when the provider answered as soon as that is known. So the
-- provider's own log shows no window with more than the limit, whatever becomes of the worker.
-- Whoever gets no permit waits in line, ordered by start tags (start-time fair queueing), so that tenants take turns by
-- what they cost; interactive work goes before bulk. A permit that comes free is reserved for the first in line, who is
-- to be woken by the caller; a reservation that nobody takes goes back to its place in the line.
--
-- KEYS state tags, then held window waiting for interactive and for bulk
-- ARGV concurrency requests tokens (0: no limit) bulk_share window_ms operation, then by operation:
--   take      class id who tenant tokens use_ms ttl_ms   -> {1 (granted) or 0, ms until it is to ask by itself, woken…}
--   renew     use_ms ttl_ms, then id who answered        -> {number of permits that are still the callers'}
--   release   id who answered tokens (-1: as estimated) cool_ms outcome retry_after_ms        -> {woken…}
--   give_back id                                         -> {woken…}
--   deal                                                 -> {woken…}
--   promote   id (it is interactive from now on)         -> {1 (it stood in the bulk line) or 0}
--   look                                                 -> {held, waiting, calls, tokens: each of both classes, factor
--                                                            in 1/1000, ms until it is asked again}
-- `answered`: ms since the provider answered, -1 if it hasn't. `outcome`: ok, slow (it asks for fewer calls), unused
-- (it was not called) or other. `cool_ms`: how long the call may still be open at the provider's side.
-- use clock
local state, tags = KEYS[1], KEYS[2]
local lines = {
  interactive = {held = KEYS[3], window = KEYS[4], waiting = KEYS[5]},
  bulk = {held = KEYS[6], window = KEYS[7], waiting = KEYS[8]},
}
local concurrency, requests, tokens = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local share, window_ms, operation = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
-- How long a reservation waits to be taken, how often one goes back to its place, and how many are made in one call.
local RESERVE_MS, RESERVES, DEALT = 5000, 3, 100
-- A provider that asks for fewer calls gets this part of them, at most once per STEP_MS, then so much more each time.
local DECREASE, INCREASE, STEP_MS, LEAST = 0.5, 0.05, 1000, 0.01
-- Those in line ask again after so long, and so much later for each one before them.
local ASK_MS, ASK_EACH_MS = 30000, 20
local KEEP_MS = 3600000
local now = clock()
local windowed = requests > 0 or tokens > 0

local function get(id)
  local data = redis.call('HGET', state, 'permit:' .. id)
  return data and cjson.decode(data)
end

local function put(id, permit)
  redis.call('HSET', state, 'permit:' .. id, cjson.encode(permit))
end

local function forget_call(class, call)
  if redis.call('ZREM', lines[class].window, call) == 1 then
    local cost = redis.call('HGET', state, 'tokens:' .. call)
    if cost then
      redis.call('HINCRBY', state, 'sum:' .. class, 0 - cost)
      redis.call('HDEL', state, 'tokens:' .. call)
    end
  end
end

local function drop(id, permit)
  redis.call('ZREM', lines[permit.class].held, id)
  redis.call('HDEL', state, 'permit:' .. id)
end

local function enqueue(class, id, tag, cost, tries)
  redis.call('ZADD', lines[class].waiting, tag, id)
  redis.call('HSET', state, 'wait:' .. id, cost .. ' ' .. tries)
end

local function clean()
  for class, line in pairs(lines) do
    for _, id in ipairs(redis.call('ZRANGE', line.held, '-inf', now, 'BYSCORE')) do
      local permit = get(id)
      redis.call('ZREM', line.held, id)
      redis.call('HDEL', state, 'permit:' .. id)
      if permit and permit.who == '' then
        forget_call(class, permit.call)
        if permit.tries < RESERVES then
          enqueue(class, id, permit.tag, permit.cost, permit.tries)
        end
      end
    end
    for _, call in ipairs(redis.call('ZRANGE', line.window, '-inf', now - window_ms, 'BYSCORE')) do
      forget_call(class, call)
    end
  end
end

local function part(limit, factor)
  return math.max(1, math.floor(limit * factor))
end

local function sum(class)
  return tonumber(redis.call('HGET', state, 'sum:' .. class) or '0')
end

-- Whether a call of `class` that costs so many tokens fits in.
local function room(class, cost, factor)
  local i, b = lines.interactive, lines.bulk
  local bulk = class == 'bulk'
  if concurrency > 0 then
    local mine = redis.call('ZCARD', b.held)
    if redis.call('ZCARD', i.held) + mine >= part(concurrency, factor)
        or bulk and mine >= part(part(concurrency, factor), share) then
      return false
    end
  end
  if requests > 0 then
    local mine = redis.call('ZCARD', b.window)
    if redis.call('ZCARD', i.window) + mine >= part(requests, factor)
        or bulk and mine >= part(part(requests, factor), share) then
      return false
    end
  end
  if tokens > 0 then
    local mine = sum('bulk')
    local all = sum('interactive') + mine
    if all > 0 and all + cost > part(tokens, factor)
        or bulk and mine > 0 and mine + cost > part(part(tokens, factor), share) then
      return false
    end
  end
  return true
end

local function grant(class, id, who, cost, tag, tries, latest, held_to)
  local call = redis.call('HINCRBY', state, 'calls', 1)
  redis.call('ZADD', lines[class].held, held_to, id)
  if windowed then
    redis.call('ZADD', lines[class].window, latest, call)
  end
  if tokens > 0 then
    redis.call('HSET', state, 'tokens:' .. call, cost)
    redis.call('HINCRBY', state, 'sum:' .. class, cost)
  end
  put(id, {class = class, call = call, who = who, cost = cost, tag = tag, tries = tries})
end

-- Reserve what is free for those in line.
local function deal()
  local woken = {}
  local h = redis.call('HMGET', state, 'until', 'factor')
  if tonumber(h[1] or '0') > now then
    return woken
  end
  local factor = tonumber(h[2] or '1')
  for _, class in ipairs({'interactive', 'bulk'}) do
    local waiting = lines[class].waiting
    while #woken < DEALT do
      local head = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
      local id = head[1]
      if not id then
        break
      end
      local cost, tries = string.match(redis.call('HGET', state, 'wait:' .. id) or '0 0', '(%d+) (%d+)')
      if not room(class, tonumber(cost), factor) then
        return woken
      end
      redis.call('ZREM', waiting, id)
      redis.call('HDEL', state, 'wait:' .. id)
      redis.call('HSET', tags, 'served:' .. class, head[2])
      grant(class, id, '', tonumber(cost), tonumber(head[2]), tries + 1, now + RESERVE_MS, now + RESERVE_MS)
      woken[#woken + 1] = id
    end
  end
  if redis.call('EXISTS', lines.interactive.waiting, lines.bulk.waiting) == 0 then
    redis.call('DEL', tags)
  end
  return woken
end

local function answered(permit, ms)
  if windowed and ms >= 0 then
    redis.call('ZADD', lines[permit.class].window, 'XX', now - ms + 1, permit.call)
  end
end

local function used_by(permit, use_ms)
  if windowed then
    redis.call('ZADD', lines[permit.class].window, 'XX', now + use_ms, permit.call)
  end
end

local function hold(id, permit, who, use_ms, ttl_ms)
  permit.who = who
  put(id, permit)
  redis.call('ZADD', lines[permit.class].held, now + ttl_ms, id)
  used_by(permit, use_ms)
end

local function keep()
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, KEEP_MS + window_ms)
  end
end

local function take(class, id, who, tenant, cost, use_ms, ttl_ms)
  local permit = get(id)
  if permit and (permit.who == who or permit.who == '') then
    hold(id, permit, who, use_ms, ttl_ms)
    return {1, 0}
  end
  if permit then  -- an attempt's whose worker was lost
    drop(id, permit)
  end
  local line = lines[class]
  local known = redis.call('ZSCORE', line.waiting, id)
  local h = redis.call('HMGET', state, 'until', 'factor')
  local first = permit or redis.call('EXISTS', lines.interactive.waiting, line.waiting) == 0
  if first and not known and tonumber(h[1] or '0') <= now and room(class, cost, tonumber(h[2] or '1')) then
    grant(class, id, who, cost, 0, 0, now + use_ms, now + ttl_ms)
    return {1, 0}
  end
  if not known then
    local served = tonumber(redis.call('HGET', tags, 'served:' .. class) or '0')
    local tag = served
    if not permit then
      local last = 'last:' .. class .. ':' .. tenant
      tag = math.max(served, tonumber(redis.call('HGET', tags, last) or '0'))
      redis.call('HSET', tags, last, tag + (tokens > 0 and cost or 1))
    end
    enqueue(class, id, tag, cost, 0)
  end
  local answer = {0, 0}
  for _, other in ipairs(deal()) do
    if other == id then
      answer[1] = 1
    else
      answer[#answer + 1] = other
    end
  end
  if answer[1] == 1 then
    hold(id, get(id), who, use_ms, ttl_ms)
  else
    answer[2] = ASK_MS + ASK_EACH_MS * (redis.call('ZRANK', line.waiting, id) or 0)
  end
  return answer
end

local function adapt(outcome, retry_after_ms)
  local h = redis.call('HMGET', state, 'factor', 'changed', 'until')
  local factor, changed = tonumber(h[1] or '1'), tonumber(h[2] or '0')
  local step = now - changed >= STEP_MS
  if outcome == 'slow' then
    redis.call('HSET', state, 'until', math.max(tonumber(h[3] or '0'), now + retry_after_ms))
    if step then
      redis.call('HSET', state, 'factor', math.max(LEAST, factor * DECREASE), 'changed', now)
    end
  elseif outcome == 'ok' and factor < 1 and step then
    if factor + INCREASE >= 1 then
      redis.call('HDEL', state, 'factor', 'changed', 'until')
    else
      redis.call('HSET', state, 'factor', factor + INCREASE, 'changed', now)
    end
  end
end

local function release(id, who, since, used, cool_ms, outcome, retry_after_ms)
  local permit = get(id)
  if permit and permit.who == who then
    drop(id, permit)
    if outcome == 'unused' then
      forget_call(permit.class, permit.call)
    else
      answered(permit, since)
      if used >= 0 and redis.call('HEXISTS', state, 'tokens:' .. permit.call) == 1 then
        local cost = redis.call('HGET', state, 'tokens:' .. permit.call)
        redis.call('HSET', state, 'tokens:' .. permit.call, used)
        redis.call('HINCRBY', state, 'sum:' .. permit.class, used - cost)
      end
      if cool_ms > 0 then
        redis.call('ZADD', lines[permit.class].held, now + cool_ms, 'closing:' .. permit.call)
      end
      adapt(outcome, retry_after_ms)
    end
  end
  return deal()
end

if operation == 'promote' then
  local id = ARGV[7]
  if redis.call('ZREM', lines.bulk.waiting, id) == 0 then
    return {0}
  end
  local cost = string.match(redis.call('HGET', state, 'wait:' .. id) or '0 0', '%d+')
  enqueue('interactive', id, tonumber(redis.call('HGET', tags, 'served:interactive') or '0'), tonumber(cost), 0)
  return {1}
end

clean()
if operation == 'take' then
  local answer = take(ARGV[7], ARGV[8], ARGV[9], ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]))
  keep()
  return answer
elseif operation == 'renew' then
  local kept = 0
  for at = 9, #ARGV, 3 do
    local permit = get(ARGV[at])
    if permit and permit.who == ARGV[at + 1] then
      kept = kept + 1
      redis.call('ZADD', lines[permit.class].held, now + ARGV[8], ARGV[at])
      local since = tonumber(ARGV[at + 2])
      if since >= 0 then
        answered(permit, since)
      else
        used_by(permit, ARGV[7])
      end
    end
  end
  keep()
  return {kept}
elseif operation == 'release' then
  return release(ARGV[7], ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12],
    tonumber(ARGV[13]))
elseif operation == 'give_back' then
  local permit = get(ARGV[7])
  if permit and permit.who == '' then
    drop(ARGV[7], permit)
    forget_call(permit.class, permit.call)
  end
  return deal()
elseif operation == 'deal' then
  local woken = deal()
  if #woken > 0 or redis.call('EXISTS', lines.interactive.waiting, lines.bulk.waiting) > 0 then
    keep()
  end
  return woken
end
local i, b = lines.interactive, lines.bulk
local h = redis.call('HMGET', state, 'factor', 'until')
return {
  redis.call('ZCARD', i.held), redis.call('ZCARD', b.held), redis.call('ZCARD', i.waiting),
  redis.call('ZCARD', b.waiting), redis.call('ZCARD', i.window), redis.call('ZCARD', b.window), sum('interactive'),
  sum('bulk'), math.floor(tonumber(h[1] or '1') * 1000 + 0.5), math.max(0, tonumber(h[2] or '0') - now),
}
