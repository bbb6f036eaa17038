-- An attempt is over: `attempt` is its record, a JSON object that is left open, and goes out with the generation's end.
local function note(gen, attempt, now)
  local h = redis.call('HMGET', gen, 'past', 'attempt_ms')
  redis.call('HSET', gen, 'past', (h[1] and h[1] .. ',' or '') .. attempt
    .. ',"started_ms":' .. h[2] .. ',"ended_ms":' .. string.format('%d', now) .. '}')
end
