-- Chunks into a log and onto its channel. `head` '' but for the first chunks of an attempt that brings its own.
-- Returns the index after the log's last chunk (chunks that are there already are not put again), or nil at a gap, also
-- before no chunks (`count` 0). Where Redis may have lost chunks (`skip`) there is one until the attempt restarts.
local function publish(gen, log, channel, next, skip, first, count, items, head)
  local last = first + count
  if last <= next then
    return next
  end
  if first ~= next or skip then
    return nil
  end
  local id = string.format('%d', last) .. '-0'
  redis.call('XADD', log, id, 'c', items)
  if head == '' then
    redis.call('HSET', gen, 'next', last)
    redis.call('SPUBLISH', channel, id .. ' c\n' .. items)
  else
    local time = redis.call('TIME')
    redis.call('HSET', gen, 'next', last, 'head', head)
    redis.call('HSETNX', gen, 'first_chunk_ms', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('SPUBLISH', channel, id .. ' h\n' .. head .. '\n' .. items)
  end
  return last
end
