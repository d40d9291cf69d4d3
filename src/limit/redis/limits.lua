-- Decides about one request by all limits of one key, atomically, by the clock of Redis.
--
-- KEYS[1]: a hash with one field for each limit. ARGV[1]: 'take' or 'charge' (consume whatever is left, refuse nothing).
-- Then for each limit: field, kind, number, microseconds of its window (or m, h, d, mo), capacity, cost.
-- Returns 1 or 0 (admitted or not), then for each limit: remaining, microseconds until more, microseconds to wait.
--
-- The same algorithms as in algorithm.rs, in doubles: exact to a millionth of a use.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local charge = ARGV[1] == 'charge'
local day = 86400000000
local slots = 16

local function first_day(year, month)
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local of_era = year - era * 400
  local from_march = month > 2 and month - 3 or month + 9
  local of_year = math.floor((153 * from_march + 2) / 5)
  return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
end

-- The number of the calendar period and when it ends. Howard Hinnant, chrono-compatible low-level date algorithms.
local function period(name)
  local length = name == 'm' and 60000000 or name == 'h' and 3600000000 or name == 'd' and day
  if length then
    local index = math.floor(now / length)
    return index, (index + 1) * length
  end
  local shifted = math.floor(now / day) + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local years = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * years + math.floor(years / 4) - math.floor(years / 100))
  local from_march = math.floor((5 * of_year + 2) / 153)
  local month = from_march < 10 and from_march + 3 or from_march - 9
  local year = years + era * 400 + (month <= 2 and 1 or 0)
  local next_year, next_month = year, month + 1
  if month == 12 then next_year, next_month = year + 1, 1 end
  return (year - 1970) * 12 + month - 1, first_day(next_year, next_month) * day
end

-- Each returns: state after, wait, and a function that tells remaining, microseconds until more, until idle.
local function bucket(stored, number, per, capacity, cost)
  local at, level = now, 0
  if stored then
    local a, l = string.match(stored, '^(%d+):(.+)$')
    at, level = tonumber(a), tonumber(l)
  end
  level = math.max(0, level - math.max(0, now - at) * number / per)
  at = math.max(at, now)
  local slack = 1e-9 + capacity * 1e-15
  local after, wait = level + cost, 0
  if charge then
    after = math.max(level, math.min(after, capacity))
  elseif after > capacity + slack then
    wait = math.ceil((after - capacity) * per / number) + 1
  end
  local function standing(l)
    local remaining = math.max(0, math.floor(capacity - l + slack))
    local more = l <= 0 and 0 or math.max(0, math.ceil((l - (capacity - remaining - 1)) * per / number))
    return remaining, math.min(more, math.ceil(l * per / number)), math.ceil(l * per / number)
  end
  return string.format('%.0f:%.17g', at, after), wait, after, level, standing
end

local function fixed(stored, number, name, cost)
  local index, ends = period(name)
  local count = 0
  if stored then
    local i, c = string.match(stored, '^(%d+):(%d+)$')
    if tonumber(i) == index then count = tonumber(c) end
  end
  local after, wait = count + cost, 0
  if charge then
    after = math.max(count, math.min(after, number))
  elseif after > number then
    wait = ends - now
  end
  local function standing(c)
    local left = c > 0 and ends - now or 0
    return math.max(0, number - c), left, left
  end
  return string.format('%.0f:%.0f', index, after), wait, after, count, standing
end

local function sliding(stored, number, per, cost)
  local length = math.max(1, math.ceil(per / (slots - 1)))
  local newest = math.floor(now / length)
  local counts, sum = {}, 0
  for i = 1, slots do counts[i] = 0 end
  if stored then
    local n, list = string.match(stored, '^(%d+):(.+)$')
    n = tonumber(n)
    newest = math.max(newest, n)
    local i = 1 + newest - n
    for count in string.gmatch(list, '%d+') do
      if i <= slots then
        counts[i] = tonumber(count)
        sum = sum + counts[i]
      end
      i = i + 1
    end
  end
  local function freed_in(uses)
    local freed = 0
    for i = slots, 1, -1 do
      freed = freed + counts[i]
      if freed >= uses then return math.max(1, (newest - (i - 1) + slots) * length - now) end
    end
    return per
  end
  local wait, add = 0, cost
  if charge then
    add = math.max(0, math.min(cost, number - sum))
  elseif sum + cost > number then
    wait = freed_in(sum + cost - number)
    add = 0
  end
  counts[1] = counts[1] + add
  local function standing(s)
    if s == 0 then return number, 0, 0 end
    return math.max(0, number - s), freed_in(math.min(s, math.max(0, s - number) + 1)), freed_in(s)
  end
  return string.format('%.0f:', newest) .. table.concat(counts, ','), wait, sum + add, sum, standing
end

local fields, list = {}, {}
for i = 2, #ARGV, 6 do
  fields[#fields + 1] = ARGV[i]
end
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
local admitted = 1
for n = 1, #fields do
  local i = 2 + (n - 1) * 6
  local kind, number, window, cost = ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], tonumber(ARGV[i + 5])
  local limit = {}
  if kind == 'b' then
    limit.state, limit.wait, limit.after, limit.before, limit.standing =
      bucket(stored[n], number, tonumber(window), tonumber(ARGV[i + 4]), cost)
  elseif kind == 'f' then
    limit.state, limit.wait, limit.after, limit.before, limit.standing = fixed(stored[n], number, window, cost)
  else
    limit.state, limit.wait, limit.after, limit.before, limit.standing = sliding(stored[n], number, tonumber(window), cost)
  end
  if limit.wait > 0 then admitted = 0 end
  list[n] = limit
end
local reply, ttl, write = { admitted }, 1000, {}
for n, limit in ipairs(list) do
  local remaining, more, idle = limit.standing(admitted == 1 and limit.after or limit.before)
  reply[#reply + 1] = remaining
  reply[#reply + 1] = more
  reply[#reply + 1] = limit.wait
  ttl = math.max(ttl, math.ceil(idle / 1000) + 1000)
  write[#write + 1] = fields[n]
  write[#write + 1] = limit.state
end
if admitted == 1 then
  local left = redis.call('PTTL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(write))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(ttl, left)))
end
return reply
