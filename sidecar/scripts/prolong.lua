#!lua
-- Give a record that is there its whole life again.
--
-- Invariants: its values outlive it; nothing lives shorter than before; what is gone stays gone.
--
-- KEYS  1 record  2 status  3 requests  4 what has arrived  5... every value of the record
-- ARGV  1 record ttl  2 value ttl  3 index ttl
-- Returns until when it lives, Unix seconds of the engine, or 0 if it is gone.

if redis.call('EXISTS', KEYS[1]) == 0 then return '0' end
for i = 5, #KEYS do
  redis.call('EXPIRE', KEYS[i], ARGV[2], 'GT')
end
redis.call('EXPIRE', KEYS[1], ARGV[1], 'GT')
redis.call('EXPIRE', KEYS[2], ARGV[3], 'GT')
redis.call('EXPIRE', KEYS[3], ARGV[3], 'GT')
redis.call('EXPIRE', KEYS[4], ARGV[1], 'GT')
return tostring(tonumber(redis.call('TIME')[1]) + tonumber(ARGV[1]))
