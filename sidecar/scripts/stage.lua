#!lua
-- Note one chunk of an upload.
--
-- Invariants: a position of an upload never changes its content; a sealed, dropped or
-- deleted upload takes no more chunks; whatever is written has a time to live.
--
-- KEYS  1 upload  2 status  3 record  4 requests
-- ARGV  1 position  2 chunk  3 choice  4 upload id  5 entry  6 request id
--       7 staging ttl  8 index ttl
-- Returns staged, replayed, conflict, deleted or dropped.

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

redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[7])
if state ~= 'sealed' and state ~= 'pending' then
  redis.call('HSET', KEYS[2], ARGV[3], 'pending ' .. ARGV[4] .. ' ' .. ARGV[5])
end
redis.call('SADD', KEYS[4], ARGV[6])
live_at_least(KEYS[2], ARGV[8])
live_at_least(KEYS[4], ARGV[8])
return 'staged'
