#!lua flags=allow-oom
-- Note that the recorder lost an upload.
--
-- Invariants: a sealed or deleted record, and another upload's pending one, stay as they
-- are; whatever is written has a time to live. Runs in a full engine too: a trainer must
-- learn of the loss then most of all, and it frees the upload.
--
-- KEYS  1 upload  2 status  3 record  4 requests
-- ARGV  1 choice  2 upload id  3 entry  4 request id  5 index ttl

local function live_at_least(key, ttl)
  -- GT alone leaves a fresh key without any time to live.
  redis.call('EXPIRE', key, ttl, 'NX')
  redis.call('EXPIRE', key, ttl, 'GT')
end

redis.call('DEL', KEYS[1])
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if entry then
  local state, owner = string.match(entry, '^(%a+) (%S+)')
  if state == 'sealed' and redis.call('EXISTS', KEYS[3]) == 1 then return 'kept' end
  if state == 'deleted' and owner == ARGV[2] then return 'kept' end
  if state == 'pending' and owner ~= ARGV[2] then return 'kept' end
end
redis.call('HSET', KEYS[2], ARGV[1], 'dropped ' .. ARGV[2] .. ' ' .. ARGV[3])
redis.call('SADD', KEYS[4], ARGV[4])
live_at_least(KEYS[2], ARGV[5])
live_at_least(KEYS[4], ARGV[5])
return 'dropped'
