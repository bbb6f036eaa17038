-- Where the next marker of a log goes: behind the chunks, and behind the markers that are there already. `mark` is the
-- last one whose place the usual rule doesn't tell; right after a restart the first place is taken.
local function place(next, base, mark)
  local at, order = string.match(mark or '', '^(%d+)-(%d+)$')
  if at == next then
    return next .. '-' .. string.format('%d', order + 1)
  end
  return next .. (next == base and next ~= '0' and '-2' or '-1')
end
