#!lua flags=allow-oom
-- Lead a name to a record, if it leads to none or to the one the caller saw.
--
-- Invariant: two callers that saw the same old pointer cannot both win. Runs in a full engine
-- too: a loss that is found under no name is found by nobody.
--
-- KEYS  1 pointer
-- ARGV  1 pointer the caller saw, or empty  2 new pointer  3 ttl
-- Returns the pointer that holds now.

local held = redis.call('GET', KEYS[1])
if not held or held == ARGV[1] or held == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  return ARGV[2]
end
return held
