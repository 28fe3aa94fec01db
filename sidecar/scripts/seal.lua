#!lua
-- Make one choice of one request visible.
--
-- Invariants: a record is visible only when every chunk of its manifest is staged and
-- every value is there in full; a visible record never changes; its values outlive it;
-- whatever is written has a time to live. Any answer but `sealed` and `sealed_late` changed
-- nothing.
--
-- KEYS  1 upload  2 status  3 record  4 requests  5 what has arrived
--       6... every value of the record
-- ARGV  1 choice  2 upload id  3 content  4 body  5 digest of the body  6 entry
--       7 request id  8 record ttl  9 value ttl  10 index ttl  11 life that is too short
--       12 number of chunks, then each chunk in order, then the length of each value
-- Returns sealed, replayed, conflict, incomplete or deleted; sealed_late if an earlier record
-- of the tag has less to live than ARGV 11, or nobody knows.

local function live_at_least(key, ttl)
  -- GT alone leaves a fresh key without any time to live.
  redis.call('EXPIRE', key, ttl, 'NX')
  redis.call('EXPIRE', key, ttl, 'GT')
end

local sealed = redis.call('HGET', KEYS[3], 'content')
if sealed then
  if sealed == ARGV[3] then return 'replayed' end
  return 'conflict'
end
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if entry then
  local state, owner = string.match(entry, '^(%a+) (%S+)')
  if state == 'deleted' and owner == ARGV[2] then return 'deleted' end
end

local chunks = tonumber(ARGV[12])
for i = 1, chunks do
  if redis.call('HGET', KEYS[1], i - 1) ~= ARGV[12 + i] then return 'incomplete' end
end
for i = 6, #KEYS do
  if redis.call('STRLEN', KEYS[i]) ~= tonumber(ARGV[12 + chunks + i - 5]) then
    return 'incomplete'
  end
end

redis.call('HSET', KEYS[3], 'content', ARGV[3], 'body', ARGV[4], 'digest', ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[8])
for i = 6, #KEYS do
  redis.call('EXPIRE', KEYS[i], ARGV[9])
end
redis.call('HSET', KEYS[2], ARGV[1], 'sealed ' .. ARGV[2] .. ' ' .. ARGV[6])
redis.call('SADD', KEYS[4], ARGV[7])
live_at_least(KEYS[2], ARGV[10])
live_at_least(KEYS[4], ARGV[10])
redis.call('DEL', KEYS[1])

local short = tonumber(ARGV[11])
if short == 0 then return 'sealed' end
local now = tonumber(redis.call('TIME')[1])
local first = tonumber(redis.call('HGET', KEYS[5], 'until'))
if not first and redis.call('SCARD', KEYS[4]) == 1 then
  first = now + tonumber(ARGV[8])
  redis.call('HSET', KEYS[5], 'until', first)
  live_at_least(KEYS[5], ARGV[8])
end
if first and first - now >= short then return 'sealed' end
return 'sealed_late'
