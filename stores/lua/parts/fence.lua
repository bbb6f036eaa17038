-- Whether `given` names the current attempt: by its number, or as its holder does by `<number>:<call>`. Where Redis was
-- set back a number is given twice, a call never.
local function current(given, attempt, call)
  return attempt and (given == attempt or given == attempt .. ':' .. (call or ''))
end
