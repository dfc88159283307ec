"""The Lua scripts of the Redis store: each runs as one step, also against other registries.

Keys, after the prefix:
    live:SOURCE:WORKER    hash: state, updated_at, source_load, nbytes, row (what a listing tells, as JSON)
    record:SOURCE:WORKER  hash: identity, worker (what was published)
    source:SOURCE         set of the workers of a source
    alive, dead           sorted sets of SOURCE:WORKER by last heartbeat
    totals                hash: records by state, and bytes
"""

from modelexpress.registry.store.base import DEAD, WorkerState

PREFIX = "modelexpress:"
"""Before every key, so that the database may be shared with others."""

_COMMON = f"""
local prefix = '{PREFIX}'
local withdrawn, lost = '{WorkerState.WITHDRAWN:d}', '{WorkerState.LOST:d}'
local function list_of(state)
    if state == '{DEAD[0]:d}' or state == '{DEAD[1]:d}' then return prefix .. 'dead' end
    return prefix .. 'alive'
end
local function count(state, records, nbytes)
    redis.call('HINCRBY', prefix .. 'totals', state, records)
    redis.call('HINCRBY', prefix .. 'totals', 'nbytes', nbytes)
end
"""

PUBLISH = f"""{_COMMON}
local source, worker, state, now, row, identity, metadata, nbytes = unpack(ARGV)
local name = source .. ':' .. worker
local live = prefix .. 'live:' .. name
local old = redis.call('HMGET', live, 'state', 'nbytes')
if old[1] then
    count(old[1], -1, -tonumber(old[2]))
    redis.call('ZREM', list_of(old[1]), name)
end
redis.call('DEL', live)
redis.call('HSET', live, 'state', state, 'updated_at', now, 'nbytes', nbytes, 'row', row)
redis.call('HSET', prefix .. 'record:' .. name, 'identity', identity, 'worker', metadata)
redis.call('SADD', prefix .. 'source:' .. source, worker)
redis.call('ZADD', list_of(state), now, name)
count(state, 1, nbytes)
"""

UPDATE = f"""{_COMMON}
local source, worker, state, now, load = unpack(ARGV)
local name = source .. ':' .. worker
local live = prefix .. 'live:' .. name
local old = redis.call('HGET', live, 'state')
if not old then return 'NOT_FOUND' end
if old == withdrawn and state ~= withdrawn then return 'WITHDRAWN' end
redis.call('HSET', live, 'state', state, 'updated_at', now)
if load ~= '' then redis.call('HSET', live, 'source_load', load) end
if list_of(old) ~= list_of(state) then redis.call('ZREM', list_of(old), name) end
redis.call('ZADD', list_of(state), now, name)
if old ~= state then
    count(old, -1, 0)
    count(state, 1, 0)
end
return 'DONE'
"""

MARK_LOST = f"""{_COMMON}
local before, limit = unpack(ARGV)
local names = redis.call(
    'ZRANGEBYSCORE', prefix .. 'alive', '-inf', '(' .. before, 'WITHSCORES', 'LIMIT', 0, limit)
for i = 1, #names, 2 do
    local live = prefix .. 'live:' .. names[i]
    count(redis.call('HGET', live, 'state'), -1, 0)
    count(lost, 1, 0)
    redis.call('HSET', live, 'state', lost)
    redis.call('ZREM', prefix .. 'alive', names[i])
    redis.call('ZADD', prefix .. 'dead', names[i + 1], names[i])
end
return #names / 2
"""

DELETE_DEAD = f"""{_COMMON}
local before, limit = unpack(ARGV)
local names = redis.call('ZRANGEBYSCORE', prefix .. 'dead', '-inf', '(' .. before, 'LIMIT', 0, limit)
for _, name in ipairs(names) do
    local old = redis.call('HMGET', prefix .. 'live:' .. name, 'state', 'nbytes')
    count(old[1], -1, -tonumber(old[2]))
    redis.call('DEL', prefix .. 'live:' .. name, prefix .. 'record:' .. name)
    redis.call('ZREM', prefix .. 'dead', name)
    redis.call('SREM', prefix .. 'source:' .. string.sub(name, 1, 16), string.sub(name, 18))
end
return #names
"""
