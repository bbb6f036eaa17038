#!lua
-- What answers a request that others' work may answer; where nothing does, the answer is reserved for `id` to fetch.
-- KEYS hot flight
-- ARGV id, mode ('join'; 'read': reserve nothing; 'ask': nothing but a new answer), max_age_ms ('': any),
--   reserve_ms, instead (the generation that is known to be of no use, or '')
-- Returns {'hit', age_ms, meta, items or nil}, {'flight', generation, ttl_ms}, {'reserved'} or {'nothing'}.
-- use clock
local hot, flight = unpack(KEYS)
local id, mode, max_age, reserve, instead = unpack(ARGV)
if mode ~= 'ask' then
  local h = redis.call('HMGET', hot, 'at', 'meta', 'items')
  if h[1] then
    local age = math.max(0, clock() - h[1])
    if max_age == '' or age <= tonumber(max_age) then
      return {'hit', age, h[2], h[3]}
    end
  end
  local generation = redis.call('GET', flight)
  if generation and generation ~= id and generation ~= instead then
    return {'flight', generation, redis.call('PTTL', flight)}
  end
  if mode == 'read' then
    return {'nothing'}
  end
end
if mode == 'ask' then
  redis.call('DEL', hot)  -- whoever comes next is to have the new answer
end
redis.call('SET', flight, id, 'PX', reserve)
return {'reserved'}
