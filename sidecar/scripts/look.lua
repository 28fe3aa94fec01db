#!lua flags=no-writes
-- Return what is known of requests, as it is at one moment.
--
-- Invariants: it changes nothing. Of one engine only: it finds keys by what it reads.
--
-- KEYS  1 the pointer of a name, or the requests of a tag
-- ARGV  1 what KEYS 1 is: `name` or `tag`
--       2... how keys are made of tag, request and choice or upload: status, record, upload
--       5 tag, if KEYS 1 is its requests
--       6 most requests that are looked at; then some of the requests, or none for all of them
-- Returns the tag, and for each choice request, choice, state, body of its record, the body's
-- digest, and whether its upload is there; false where there is none. Nothing at all if the name
-- leads nowhere, and the tag alone with the number of its requests if they are too many.

local status, record, upload = ARGV[2], ARGV[3], ARGV[4]
local tag, requests
if ARGV[1] == 'name' then
  local pointer = redis.call('GET', KEYS[1])
  if not pointer then return {} end
  local request
  tag, request = string.match(pointer, '^(%S+) (.+)$')
  requests = {request}
else
  tag = ARGV[5]
  if #ARGV > 6 then
    requests = {unpack(ARGV, 7)}
  else
    local count = redis.call('SCARD', KEYS[1])
    if count > tonumber(ARGV[6]) then return {tag, count} end
    requests = redis.call('SMEMBERS', KEYS[1])
  end
end

local found = {tag}
local n = 1
for _, request in ipairs(requests) do
  local states = redis.call('HGETALL', string.format(status, tag, request))
  for i = 1, #states, 2 do
    local choice, noted = states[i], states[i + 1]
    local state, owner = string.match(noted, '^(%a+) (%S+)')
    local held, there = {false, false}, false
    if state == 'sealed' then
      held = redis.call('HMGET', string.format(record, tag, request, choice), 'body', 'digest')
    elseif state == 'pending' then
      there = redis.call('EXISTS', string.format(upload, tag, owner)) == 1
    end
    found[n + 1], found[n + 2], found[n + 3] = request, choice, noted
    found[n + 4], found[n + 5], found[n + 6] = held[1], held[2], there
    n = n + 6
  end
end
return found
