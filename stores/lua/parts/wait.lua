-- An attempt is over and its generation is not: it waits for the next one, now or (due > 0) at a time.
-- `attempt` is the record of the one that is over, a JSON object that is left open; '' where it called no provider: then
-- it leaves no trace. Suspects were there when two workers
-- died, and have their next attempt one at a time.
local function wait(gen, lease, waiting, control, id, state, due, attempt, now)
  local h = redis.call('HMGET', gen, 'past', 'attempt_ms')
  redis.call('HSET', gen, 'state', state)
  if attempt ~= '' then
    redis.call('HSET', gen, 'past', (h[1] and h[1] .. ',' or '') .. attempt
      .. ',"started_ms":' .. h[2] .. ',"ended_ms":' .. string.format('%d', now) .. '}')
  else
    redis.call('HINCRBY', gen, 'attempt', -1)
    if not h[1] then
      redis.call('HDEL', gen, 'leased_ms')
    end
  end
  redis.call('HDEL', gen, 'worker')
  redis.call('ZREM', lease, id)
  redis.call('ZADD', waiting, due > 0 and due or now, id)
  if due == 0 then
    redis.call('SPUBLISH', control, 'recover')
  end
end
