"""What is done on a Redis or Valkey server in one step."""

PUBLISH = """
-- KEYS: the counter, the history, the channel.
-- ARGV: the run of the server, a fresh epoch, the body, how many are kept, for how many ms, the counter for how many
-- ms, PUBLISH or SPUBLISH.
local counter = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'run', 'keep')
local epoch = counter[1]
if counter[3] ~= ARGV[1] then
  -- The counter is new, or the server has started since: it may have lost the last publications, so their offsets must
  -- not be given again. Whoever has seen exactly what it still knows has missed nothing.
  local before = epoch and (epoch .. '-' .. (counter[2] or '0')) or ''
  epoch = ARGV[2]
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', '0', 'run', ARGV[1], 'before', before)
end
local offset = redis.call('HINCRBY', KEYS[1], 'offset', 1)
if offset == 1 then redis.call('DEL', KEYS[2]) end  -- of a counter that was lost
redis.call('PEXPIRE', KEYS[1], ARGV[6])
local history, ttl = ARGV[4], ARGV[5]
if history ~= '0' then
  local keep = history .. ':' .. ttl
  if counter[4] ~= keep then redis.call('HSET', KEYS[1], 'keep', keep) end
elseif counter[4] then
  -- Who publishes here keeps none, but others do: one that is left out would be a hole for them.
  history, ttl = string.match(counter[4], '(%d+):(%d+)')
end
if history ~= '0' then
  local function keep()
    return redis.pcall('XADD', KEYS[2], 'MAXLEN', '=', history, string.format('%d-0', offset), 'b', ARGV[3])
  end
  local kept = keep()
  if type(kept) == 'table' and kept.err then  -- somebody else has written there
    redis.call('DEL', KEYS[2])
    kept = keep()
    if type(kept) == 'table' and kept.err then return kept end
  end
  redis.call('PEXPIRE', KEYS[2], ttl)
end
redis.call(ARGV[7], KEYS[3], epoch .. ':' .. string.format('%d', offset) .. ':' .. ARGV[3])
return {epoch, offset}
"""

PRESENCE = """
-- KEYS: the leases ("connection:key" by when they end), the connections by key, the metas by lease, the channel.
-- ARGV: enter, leave or renew; the lease in ms; PUBLISH or SPUBLISH; then "connection:key", and behind each the meta if
-- it is to enter.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local joined, left, unknown = {}, {}, {}

local function key_of(lease)
  return string.sub(lease, string.find(lease, ':', 1, true) + 1)
end

local function drop(lease)
  if redis.call('ZREM', KEYS[1], lease) == 0 then return end
  redis.call('HDEL', KEYS[3], lease)
  local key = key_of(lease)
  if redis.call('HINCRBY', KEYS[2], key, -1) <= 0 then
    redis.call('HDEL', KEYS[2], key)
    left[#left + 1] = key
  end
end

for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000)) do drop(lease) end

local ends = string.format('%.0f', now + ARGV[2])
if ARGV[1] == 'enter' then
  for at = 4, #ARGV, 2 do
    local key = key_of(ARGV[at])
    if redis.call('ZADD', KEYS[1], ends, ARGV[at]) == 1 and redis.call('HINCRBY', KEYS[2], key, 1) == 1 then
      joined[#joined + 1] = key
      joined[#joined + 1] = ARGV[at + 1]
    end
    -- With a number, so that the meta that came last is known; no member has the key ''.
    redis.call('HSET', KEYS[3], ARGV[at], redis.call('HINCRBY', KEYS[2], '', 1) .. ':' .. ARGV[at + 1])
  end
elseif ARGV[1] == 'renew' then
  for at = 4, #ARGV do
    if redis.call('ZSCORE', KEYS[1], ARGV[at]) then
      redis.call('ZADD', KEYS[1], ends, ARGV[at])
    else
      unknown[#unknown + 1] = ARGV[at]
    end
  end
else
  for at = 4, #ARGV do drop(ARGV[at]) end
end
if redis.call('ZCARD', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
for at = 1, 3 do  -- others may have a longer lease
  if redis.call('PTTL', KEYS[at]) < ARGV[2] * 2 then redis.call('PEXPIRE', KEYS[at], ARGV[2] * 2) end
end
if #joined + #left > 0 then
  redis.call(ARGV[3], KEYS[4], '::P' .. cmsgpack.pack({joined, left}))
end
return unknown
"""
