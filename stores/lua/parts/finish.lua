-- The end of a generation: end entry, state, ledger record. `record` is a JSON object that is left open. Uses `place`.
local function finish(gen, req, log, ledger, channel, deadlines, members, id, state, ending, record, now)
  local h = redis.call('HMGET', gen, 'attempt', 'next', 'base', 'created_ms', 'leased_ms', 'first_chunk_ms', 'past',
    'attempt_ms', 'mark', 'timed')
  local entry = place(h[2], h[3], h[9])
  redis.call('XADD', log, entry, 'e', ending)
  redis.call('HSET', gen, 'state', state, 'end', ending, 'ended_ms', now)
  redis.call('HDEL', gen, 'cancel', 'worker', 'past', 'skip')
  redis.call('DEL', req)
  redis.call('ZREM', deadlines, id, id .. '/' .. id)
  if h[10] then
    for _, joined in ipairs(redis.call('HKEYS', members)) do
      redis.call('ZREM', deadlines, id .. '/' .. joined)
    end
  end
  redis.call('XADD', ledger, '*', 'r', record .. ',"attempt":' .. h[1] .. ',"base":' .. h[3] .. ',"next":' .. h[2]
    .. ',"created_ms":' .. h[4] .. (h[5] and ',"leased_ms":' .. h[5] or '')
    .. (h[8] and ',"started_ms":' .. h[8] or '')
    .. (h[6] and ',"first_chunk_ms":' .. h[6] or '') .. (h[7] and ',"past":[' .. h[7] .. ']' or '')
    .. ',"ended_ms":' .. string.format('%d', now) .. '}')
  redis.call('SPUBLISH', channel, entry .. ' e\n' .. ending)
end
