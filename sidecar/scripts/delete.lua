#!lua flags=allow-oom
-- Remove one record, or one upload that is not sealed, and remember that it was deleted.
--
-- Invariants: after it no value of the record is left and its state is `deleted`; a record
-- that changed since it was looked up is left alone. Runs in a full engine too: it frees.
--
-- KEYS  1 upload  2 status  3 record  4... every value
-- ARGV  1 choice  2 upload id  3 entry  4 index ttl
-- Returns deleted or changed.

local entry = redis.call('HGET', KEYS[2], ARGV[1])
if entry then
  local _, owner = string.match(entry, '^(%a+) (%S+)')
  if owner ~= ARGV[2] then return 'changed' end
end
for i = 1, #KEYS do
  if i ~= 2 then redis.call('UNLINK', KEYS[i]) end
end
redis.call('HSET', KEYS[2], ARGV[1], 'deleted ' .. ARGV[2] .. ' ' .. ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[4], 'NX')
redis.call('EXPIRE', KEYS[2], ARGV[4], 'GT')
return 'deleted'
