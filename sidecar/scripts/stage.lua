#!lua
-- Note one chunk of an upload.
--
-- Invariants: a position of an upload never changes its content; a sealed, dropped or
-- deleted upload takes no more chunks; within the life of a record a tag takes no more than
-- so many bytes and requests; whatever is written has a time to live.
--
-- KEYS  1 upload  2 status  3 record  4 requests  5 what has arrived
-- ARGV  1 position  2 chunk  3 choice  4 upload id  5 entry  6 request id
--       7 staging ttl  8 index ttl  9 bytes  10 most bytes  11 most requests  12 record ttl
-- Returns staged, replayed, conflict, deleted, dropped, too_many or too_long.

local function live_at_least(key, ttl)
  -- GT alone leaves a fresh key without any time to live.
  redis.call('EXPIRE', key, ttl, 'NX')
  redis.call('EXPIRE', key, ttl, 'GT')
end

local entry = redis.call('HGET', KEYS[2], ARGV[3])
local state, owner
if entry then
  state, owner = string.match(entry, '^(%a+) (%S+)')
  if state == 'sealed' and redis.call('EXISTS', KEYS[3]) == 0 then
    state = 'expired'
  end
end
if owner == ARGV[4] then
  if state == 'sealed' then return 'replayed' end
  if state == 'deleted' or state == 'dropped' then return state end
end

local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and known ~= ARGV[2] then return 'conflict' end

if not known then
  local first = redis.call('EXISTS', KEYS[5]) == 0
  local bytes = tonumber(redis.call('HGET', KEYS[5], 'bytes') or 0) + tonumber(ARGV[9])
  if bytes > tonumber(ARGV[10]) then return 'too_long' end
  if redis.call('SISMEMBER', KEYS[4], ARGV[6]) == 0 then
    local requests = tonumber(redis.call('HGET', KEYS[5], 'requests') or 0)
    if requests >= tonumber(ARGV[11]) then return 'too_many' end
    redis.call('HINCRBY', KEYS[5], 'requests', 1)
  end
  redis.call('HSET', KEYS[5], 'bytes', bytes)
  if first then redis.call('EXPIRE', KEYS[5], ARGV[12]) end
end

redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[7])
if state ~= 'sealed' and state ~= 'pending' then
  redis.call('HSET', KEYS[2], ARGV[3], 'pending ' .. ARGV[4] .. ' ' .. ARGV[5])
end
redis.call('SADD', KEYS[4], ARGV[6])
live_at_least(KEYS[2], ARGV[8])
live_at_least(KEYS[4], ARGV[8])
return 'staged'
