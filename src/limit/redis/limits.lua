-- Decides about one request by all limits of one key, atomically, by the clock of Redis.
--
-- KEYS[1]: a hash with one field for each limit, and the field '#' with the leases that are out.
-- ARGV[1]: 'take'; 'look' (nothing is consumed or written); 'charge' (consume whatever is left, refuse nothing); 'lease'
-- (take, settle leases, hand out a new one); 'give' (take back what was consumed, because the request was refused after all).
-- ARGV[2]: how many arguments of 'lease' or 'give' follow. Those of 'lease' are: id of the new lease, GATEWAY/NUMBER, the most uses
-- of it, its longest life in microseconds, the number of gateways, the most uses that this gateway may have out, then for each
-- lease that comes back its id and how many of its uses were spent. That of 'give' is when it was consumed. Then for each limit:
-- field, kind, number, microseconds of its window (or m, h, d, mo), capacity, cost.
-- Returns 1 or 0 (admitted or not), then for each limit: remaining, microseconds until more, microseconds to wait; for 'lease'
-- also the uses of the new lease and its life in microseconds; then the time in microseconds.
--
-- A lease counts as used from when it is handed out. When it comes back, what was spent of it counts from then on; when it
-- does not come back until it expires, all of it does. So what is counted is never less than what was admitted.
--
-- The same algorithms as in algorithm.rs, in doubles: exact to a millionth of a use.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local mode = ARGV[1]
local extra = tonumber(ARGV[2])
local first = 3 + extra
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

-- The number of the calendar period, when it ends and when it began. Howard Hinnant, chrono-compatible low-level date algorithms.
local function period(name, now)
  local length = name == 'm' and 60000000 or name == 'h' and 3600000000 or name == 'd' and day
  if length then
    local index = math.floor(now / length)
    return index, (index + 1) * length, index * length
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
  return (year - 1970) * 12 + month - 1, first_day(next_year, next_month) * day, first_day(year, month) * day
end

-- More microseconds than this nobody waits for; what is more could not be told to Redis, or to a gateway.
local longest = 2 ^ 53

-- Uses that are out on leases, those of them that this gateway has, and when the last expires.
local held, own, last = 0, 0, now

-- Each limit: used (now), most, add(uses), give(uses, taken), wait(uses), standing() = remaining, microseconds until more, until
-- idle; state(); ends and began of a calendar window. What is given back is never more than what still counts of it, whatever
-- was counted since: the same rules as in algorithm.rs.
local function bucket(stored, number, per, capacity)
  local at, level = now, 0
  if stored then
    local a, l = string.match(stored, '^(%d+):(.+)$')
    at, level = tonumber(a), tonumber(l)
  end
  level = math.max(0, level - math.max(0, now - at) * number / per)
  -- After the clock went back, nothing drains until it is where it was.
  local still = math.max(0, at - now)
  at = math.max(at, now)
  local slack = 1e-9 + capacity * 1e-15
  local limit = { used = level, most = capacity }
  function limit.add(uses) limit.used = limit.used + uses end
  function limit.give(uses, taken)
    limit.used = math.max(0, limit.used - math.max(0, uses - math.max(0, now - taken) * number / per))
  end
  function limit.wait(uses)
    local after = limit.used + held + uses
    if after <= capacity + slack then return 0 end
    local drained = math.ceil((after - capacity) * per / number) + 1 + still
    -- Leases do not drain: where they are in the way, they must come back first.
    if held + uses > capacity then drained = drained + last - now end
    return drained
  end
  function limit.standing()
    local l = limit.used + held
    local remaining = math.max(0, math.floor(capacity - l + slack))
    if l <= 0 then return remaining, 0, 0 end
    local more = math.max(0, math.ceil((l - (capacity - remaining - 1)) * per / number))
    local idle = math.ceil(l * per / number)
    return remaining, math.min(more, idle) + still, idle + still
  end
  function limit.state() return string.format('%.0f:%.17g', at, limit.used) end
  return limit
end

local function fixed(stored, number, name)
  local index, ends, began = period(name, now)
  local used, i, c = 0, nil, nil
  if stored then
    i, c = string.match(stored, '^(%d+):(%d+)$')
    i, c = tonumber(i), tonumber(c)
    -- A clock that was set back over one border does not begin a new period: Redis may have failed over to a server that is
    -- behind. One that was set back further had been wrong before.
    if i == index + 1 and c > 0 then index, ends, began = period(name, ends) end
    if i == index then used = c end
  end
  local limit = { used = used, most = number, ends = ends, began = began }
  function limit.add(uses) limit.used = limit.used + uses end
  function limit.give(uses, taken)
    if taken >= began then
      limit.used = math.max(0, limit.used - uses)
    elseif i and period(name, taken) == i then
      c = math.max(0, c - uses)
    end
  end
  function limit.wait(uses) return limit.used + held + uses > number and ends - now or 0 end
  function limit.standing()
    local count = limit.used + held
    local left = count > 0 and ends - now or 0
    return math.max(0, number - count), left, left
  end
  -- While nothing counts in this period, what another had is kept: the clock may go back to it.
  function limit.state()
    if limit.used == 0 and i and i ~= index then return string.format('%.0f:%.0f', i, c) end
    return string.format('%.0f:%.0f', index, limit.used)
  end
  return limit
end

local function sliding(stored, number, per)
  local length = math.max(1, math.ceil(per / (slots - 1)))
  local newest = math.floor(now / length)
  local counts = {}
  local limit = { used = 0, most = number }
  for i = 1, slots do counts[i] = 0 end
  if stored then
    local n, list = string.match(stored, '^(%d+):(.+)$')
    n = tonumber(n)
    newest = math.max(newest, n)
    local i = 1 + newest - n
    for count in string.gmatch(list, '%d+') do
      if i <= slots then
        counts[i] = tonumber(count)
        limit.used = limit.used + counts[i]
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
    return last - now + slots * length
  end
  function limit.add(uses)
    counts[1] = counts[1] + uses
    limit.used = limit.used + uses
  end
  function limit.give(uses, taken)
    local slot = newest - math.floor(taken / length) + 1
    if slot > slots then return end
    for i = math.max(1, slot), 1, -1 do
      local part = math.min(uses, counts[i])
      counts[i] = counts[i] - part
      limit.used = limit.used - part
      uses = uses - part
    end
  end
  function limit.wait(uses)
    local over = limit.used + held + uses - number
    return over > 0 and freed_in(over) or 0
  end
  function limit.standing()
    local s = limit.used + held
    if s == 0 then return number, 0, 0 end
    return math.max(0, number - s), freed_in(math.min(s, math.max(0, s - number) + 1)), freed_in(s)
  end
  function limit.state() return string.format('%.0f:', newest) .. table.concat(counts, ',') end
  return limit
end

local fields, list, costs = { '#' }, {}, {}
for i = first, #ARGV, 6 do
  fields[#fields + 1] = ARGV[i]
end
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
for n = 1, #fields - 1 do
  local i = first + (n - 1) * 6
  local kind, number, window = ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  costs[n] = tonumber(ARGV[i + 5])
  if kind == 'b' then
    list[n] = bucket(stored[n + 1], number, tonumber(window), tonumber(ARGV[i + 4]))
  elseif kind == 'f' then
    list[n] = fixed(stored[n + 1], number, window)
  else
    list[n] = sliding(stored[n + 1], number, tonumber(window))
  end
end

-- The leases: those that come back or have expired are settled. One of a calendar window that is over is void: it ended before
-- the window did.
local leases, changed = {}, false
if stored[1] then
  local back = {}
  for i = 8, 2 + extra, 2 do back[ARGV[i]] = tonumber(ARGV[i + 1]) end
  local gateway = mode == 'lease' and string.match(ARGV[3], '^(.*)/')
  for id, uses, expires in string.gmatch(stored[1], '([^,;]+),(%d+),(%d+);') do
    uses, expires = tonumber(uses), tonumber(expires)
    local spent = back[id]
    if expires <= now then
      spent = uses
    elseif spent then
      spent = math.min(spent, uses)
    end
    if spent then
      changed = true
      for _, limit in ipairs(list) do
        if not limit.began or expires > limit.began then limit.add(spent) end
      end
    else
      leases[#leases + 1] = string.format('%s,%.0f,%.0f;', id, uses, expires)
      held = held + uses
      if gateway and string.match(id, '^(.*)/') == gateway then own = own + uses end
      last = math.max(last, expires)
    end
  end
end

local admitted, waits = 1, {}
for n, limit in ipairs(list) do
  waits[n] = 0
  if mode == 'give' then
    limit.give(costs[n], tonumber(ARGV[3]))
  elseif mode == 'charge' then
    limit.add(math.max(0, math.min(costs[n], limit.most - limit.used - held)))
  else
    waits[n] = costs[n] > 0 and limit.wait(costs[n]) or 0
    if waits[n] > 0 then admitted = 0 end
  end
end
if mode ~= 'charge' and mode ~= 'give' and admitted == 1 then
  for n, limit in ipairs(list) do limit.add(costs[n]) end
end

local granted, life = 0, 0
if mode == 'lease' and admitted == 1 then
  -- Whatever got lost on the way: a gateway that does not know of a lease of its own gets no more beside it.
  granted, life = math.min(tonumber(ARGV[4]), tonumber(ARGV[7]) - own), tonumber(ARGV[5])
  for _, limit in ipairs(list) do
    -- Near the end each gateway gets no more than its share of what is left, so that none strands what others could use.
    granted = math.min(granted, math.floor((limit.most - limit.used - held) / tonumber(ARGV[6])))
    if limit.ends then life = math.min(life, limit.ends - now) end
  end
  granted = math.max(0, granted)
  if granted > 0 then
    leases[#leases + 1] = string.format('%s,%.0f,%.0f;', ARGV[3], granted, now + life)
    held = held + granted
    last = math.max(last, now + life)
    changed = true
  end
end

local reply, ttl, write = { admitted }, 1000, {}
for n, limit in ipairs(list) do
  local remaining, more, idle = limit.standing()
  reply[#reply + 1] = remaining
  reply[#reply + 1] = math.min(more, longest)
  reply[#reply + 1] = math.min(waits[n], longest)
  ttl = math.max(ttl, math.ceil(math.min(idle + last - now, longest) / 1000) + 1000)
  write[#write + 1] = fields[n + 1]
  write[#write + 1] = limit.state()
end
if mode == 'lease' then
  reply[#reply + 1] = granted
  reply[#reply + 1] = life
end
reply[#reply + 1] = now
if mode ~= 'look' and (admitted == 1 or changed) then
  if changed then
    write[#write + 1] = '#'
    write[#write + 1] = table.concat(leases)
  end
  local left = redis.call('PTTL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(write))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(ttl, left)))
end
return reply
