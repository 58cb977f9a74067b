/*
 * The connection table: memory, places and locks. See conntrack.h for its form.
 *
 * Several loops use one table, because a peer chooses the queues that its frames come by. Each bucket has a lock; a
 * connection is only looked at, made or removed under the lock of the bucket that it stands in, and made only while
 * both of its buckets are locked, so that no connection is there twice. Two locks are taken in the order of their
 * buckets.
 */
#define _GNU_SOURCE
#include "conntrack.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "siphash.h"
#include "spinlock.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

enum {
    PREFERRED = 4, /* connections in the first bucket from which on the second one is looked at: simulated, see ADR 8 */
    PAGE = 4096
};

#define EACH_LANE 0x0001000100010001ull
#define LANE_TOPS 0x8000800080008000ull

_Static_assert(sizeof(struct rway_connection) == RWAY_LINE, "a connection is one line");
_Static_assert(sizeof(struct rway_conntrack_bucket) == RWAY_LINE, "a bucket is one line");

/* ---- memory ---- */

/* Half as many places again as connections: with fewer, buckets overflow before the table is full (ADR 8). */
static uint32_t buckets_for(uint32_t connections)
{
    return (uint32_t)(((uint64_t)connections * 3 / 2 + RWAY_CONNTRACK_WAYS - 1) / RWAY_CONNTRACK_WAYS);
}

uint64_t rway_conntrack_size(uint32_t connections)
{
    return (uint64_t)buckets_for(connections) * (RWAY_CONNTRACK_WAYS + 1) * RWAY_LINE + RWAY_DATAGRAMS_SIZE;
}

uint32_t rway_conntrack_places(uint32_t connections)
{
    return buckets_for(connections) * RWAY_CONNTRACK_WAYS;
}

/* All of it now: memory that is missing is to be noticed when rules are put in force, not under attack. */
static int populate(void *memory, size_t size)
{
    madvise(memory, size, MADV_HUGEPAGE); /* if the kernel has them; it works without */
    if (madvise(memory, size, MADV_POPULATE_WRITE) == 0)
        return 0;
    if (errno != EINVAL)
        return -1;
    for (size_t at = 0; at < size; at += PAGE)
        rway_write_once((uint8_t *)memory + at, 0);
    return 0;
}

static struct rway_conntrack *no_memory(struct rway_conntrack *conntrack, struct rway_error *error, uint64_t size)
{
    rway_refuse(error, RWAY_REFUSED_SYSTEM, "memory for connections", 0, size);
    if (error)
        error->sys_errno = ENOMEM;
    rway_conntrack_free(conntrack);
    return NULL;
}

struct rway_conntrack *rway_conntrack_new(uint32_t connections, const struct rway_conntrack_timeouts *timeouts,
                                          struct rway_error *error)
{
    struct rway_conntrack *conntrack;
    void *memory;

    if (connections < RWAY_CONNECTIONS_MIN || connections > RWAY_CONNECTIONS_MAX) {
        rway_refuse(error, RWAY_REFUSED_ARGUMENT, "connections", connections, RWAY_CONNECTIONS_MAX);
        return NULL;
    }
    conntrack = calloc(1, sizeof(*conntrack));
    if (!conntrack)
        return no_memory(NULL, error, rway_conntrack_size(connections));
    conntrack->size = rway_conntrack_size(connections);
    conntrack->bucket_count = buckets_for(connections);
    conntrack->timeouts = *timeouts;
    memory = mmap(NULL, conntrack->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return no_memory(conntrack, error, conntrack->size);
    conntrack->buckets = memory;
    conntrack->connections = (struct rway_connection *)(conntrack->buckets + conntrack->bucket_count);
    conntrack->datagrams =
        (struct rway_datagram_bucket *)(conntrack->connections + (size_t)conntrack->bucket_count * RWAY_CONNTRACK_WAYS);
    if (populate(memory, conntrack->size) != 0)
        return no_memory(conntrack, error, conntrack->size);
    if (getrandom(conntrack->secret, sizeof(conntrack->secret), 0) != (ssize_t)sizeof(conntrack->secret)) {
        rway_refuse_errno(error, "getrandom");
        rway_conntrack_free(conntrack);
        return NULL;
    }
    return conntrack;
}

void rway_conntrack_free(struct rway_conntrack *conntrack)
{
    if (conntrack && conntrack->buckets)
        munmap(conntrack->buckets, conntrack->size);
    free(conntrack);
}

/* ---- where a key may stand ---- */

/* IPv4 addresses go into one word: half the work for most frames. */
uint64_t rway_conntrack_keyed_hash(const struct rway_conntrack *conntrack, const struct rway_conntrack_key *key)
{
    const uint64_t *words = key->words;
    const uint64_t short_key[3] = {words[0] | words[2] << 32, words[4], words[5]};
    bool ip4 = (uint8_t)(words[5] >> 40) == 4;

    return ip4 ? rway_siphash(1, 3, conntrack->secret, short_key, 3) : rway_siphash(1, 3, conntrack->secret, words, 6);
}

/* A bucket from the upper bits of each half, the tag from the lower ones: they say nothing of each other. */
struct rway_conntrack_probe rway_conntrack_probe(const struct rway_conntrack *conntrack,
                                                 const struct rway_conntrack_key *key)
{
    uint64_t value = rway_conntrack_keyed_hash(conntrack, key);
    uint64_t low = (uint32_t)value;
    uint64_t high = value >> 32;
    uint64_t tag = (low & 0xff) | (high & 0xff) << 8;

    return (struct rway_conntrack_probe){
        .first = (uint32_t)(low * conntrack->bucket_count >> 32),
        .second = (uint32_t)(high * conntrack->bucket_count >> 32),
        .tag = (tag == 0 ? 1 : tag) * EACH_LANE,
    };
}

/* The top bit of each 16-bit lane that is 0 in difference. No lane carries into the next: the tops are left out. */
static uint64_t zero_lanes(uint64_t difference)
{
    return ~(((difference & ~LANE_TOPS) + ~LANE_TOPS) | difference) & LANE_TOPS;
}

/* Bit w for each place w of the bucket that has the tag. Relaxed: also without the lock, to know what to fetch. */
static uint32_t ways_with(const struct rway_conntrack_bucket *bucket, uint64_t tag)
{
    uint32_t ways = 0;

    for (uint32_t word = 0; word < 2; word++) {
        uint64_t lanes = zero_lanes(rway_read_once(&bucket->tags[word]) ^ tag);

        for (; lanes != 0; lanes &= lanes - 1)
            ways |= 1u << (4 * word + (uint32_t)__builtin_ctzll(lanes) / 16);
    }
    return ways;
}

static struct rway_connection *connection_at(const struct rway_conntrack *conntrack,
                                             const struct rway_conntrack_bucket *bucket, uint32_t way)
{
    return &conntrack->connections[(size_t)(bucket - conntrack->buckets) * RWAY_CONNTRACK_WAYS + way];
}

static bool fetch_flows(const struct rway_conntrack *conntrack, const struct rway_conntrack_bucket *bucket,
                        uint64_t tag)
{
    uint32_t ways = ways_with(bucket, tag);

    for (uint32_t left = ways; left != 0; left &= left - 1)
        __builtin_prefetch(connection_at(conntrack, bucket, (uint32_t)__builtin_ctz(left)));
    return ways != 0;
}

void rway_conntrack_fetch_first(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe)
{
    __builtin_prefetch(&conntrack->buckets[probe->first], 1);
}

bool rway_conntrack_fetch_flow(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe)
{
    if (fetch_flows(conntrack, &conntrack->buckets[probe->first], probe->tag))
        return true;
    __builtin_prefetch(&conntrack->buckets[probe->second], 1);
    return false;
}

void rway_conntrack_fetch_second(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe)
{
    fetch_flows(conntrack, &conntrack->buckets[probe->second], probe->tag);
}

/* ---- locks ---- */

void rway_conntrack_let_go(struct rway_conntrack_hold *hold)
{
    for (uint32_t index = 0; index < 2; index++)
        if (hold->buckets[index])
            rway_unlock(&hold->buckets[index]->lock);
    hold->buckets[0] = hold->buckets[1] = NULL;
}

/* ---- finding ---- */

/* Is it in this bucket, which is locked? */
static bool find_in(const struct rway_conntrack *conntrack, struct rway_conntrack_bucket *bucket, uint64_t tag,
                    const struct rway_conntrack_key *key, struct rway_conntrack_hold *hold)
{
    for (uint32_t ways = ways_with(bucket, tag); ways != 0; ways &= ways - 1) {
        uint32_t way = (uint32_t)__builtin_ctz(ways);
        struct rway_connection *connection = connection_at(conntrack, bucket, way);

        if (rway_conntrack_key_equal(&connection->key, key)) {
            hold->bucket = bucket;
            hold->connection = connection;
            hold->way = way;
            return true;
        }
    }
    return false;
}

/*
 * Lock the second bucket too. When it stands before the first one it must be locked before it: if that does not work
 * at once, the first one is let go for a moment, in which another loop may make the connection there. False: look
 * again.
 */
static bool lock_second(struct rway_conntrack_hold *hold, struct rway_conntrack_bucket *second)
{
    struct rway_conntrack_bucket *first = hold->buckets[0];

    if (second > first) {
        rway_lock(&second->lock);
    } else if (second < first && !rway_try_lock(&second->lock)) {
        rway_unlock(&first->lock);
        rway_lock(&second->lock);
        rway_lock(&first->lock);
        hold->buckets[1] = second;
        return false;
    }
    hold->buckets[1] = second == first ? NULL : second;
    return true;
}

void rway_conntrack_find(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe,
                         const struct rway_conntrack_key *key, struct rway_conntrack_hold *hold)
{
    struct rway_conntrack_bucket *first = &conntrack->buckets[probe->first];
    struct rway_conntrack_bucket *second = &conntrack->buckets[probe->second];

    *hold = (struct rway_conntrack_hold){.buckets = {first, NULL}};
    rway_lock(&first->lock);
    if (find_in(conntrack, first, probe->tag, key, hold))
        return;
    if (!lock_second(hold, second) && find_in(conntrack, first, probe->tag, key, hold))
        return;
    find_in(conntrack, second, probe->tag, key, hold);
}

/* ---- making room ---- */

static void set_tag(struct rway_conntrack_bucket *bucket, uint32_t way, uint64_t tag)
{
    uint64_t *word = &bucket->tags[way / 4];
    uint64_t lane = 0xffffull << 16 * (way % 4);

    rway_write_once(word, (*word & ~lane) | (tag & lane));
}

static bool is_free(const struct rway_conntrack_bucket *bucket, uint32_t way, uint32_t now)
{
    return bucket->states[way] == 0 || rway_conntrack_expired(bucket->deadlines[way], now);
}

static uint32_t count_free(const struct rway_conntrack_bucket *bucket, uint32_t now)
{
    uint32_t count = 0;

    for (uint32_t way = 0; way < RWAY_CONNTRACK_WAYS; way++)
        count += is_free(bucket, way, now);
    return count;
}

/* The bucket for a new connection: the first one while it has few, else the emptier one. NULL: both are full. */
static struct rway_conntrack_bucket *bucket_for_new(const struct rway_conntrack_hold *hold, uint32_t now)
{
    uint32_t in_first = count_free(hold->buckets[0], now);
    uint32_t in_second = hold->buckets[1] ? count_free(hold->buckets[1], now) : 0;

    if (in_first > RWAY_CONNTRACK_WAYS - PREFERRED || (in_first >= in_second && in_first != 0))
        return hold->buckets[0];
    return in_second != 0 ? hold->buckets[1] : NULL;
}

static enum rway_conntrack_made take_free(struct rway_conntrack_hold *hold, uint32_t now)
{
    hold->way = 0;
    while (!is_free(hold->bucket, hold->way, now))
        hold->way++;
    return hold->bucket->states[hold->way] == 0 ? RWAY_CONNTRACK_IN_FREE : RWAY_CONNTRACK_FOR_EXPIRED;
}

/* Of the connections that give way most readily, the one that would expire first. */
static enum rway_conntrack_made take_another(struct rway_conntrack_hold *hold)
{
    uint32_t most = 0;
    uint32_t earliest = 0;

    for (uint32_t index = 0; index < 2 && hold->buckets[index]; index++)
        for (uint32_t way = 0; way < RWAY_CONNTRACK_WAYS; way++) {
            struct rway_conntrack_bucket *bucket = hold->buckets[index];
            uint32_t yields = rway_conntrack_yields(bucket->states[way]);

            if (yields < most || yields == 0 || (yields == most && (int32_t)(bucket->deadlines[way] - earliest) >= 0))
                continue;
            most = yields;
            earliest = bucket->deadlines[way];
            hold->bucket = bucket;
            hold->way = way;
        }
    return most == 0 ? RWAY_CONNTRACK_NO_ROOM : RWAY_CONNTRACK_FOR_ANOTHER;
}

enum rway_conntrack_made rway_conntrack_make(const struct rway_conntrack *conntrack,
                                             const struct rway_conntrack_probe *probe,
                                             const struct rway_conntrack_key *key, uint32_t now,
                                             struct rway_conntrack_hold *hold)
{
    enum rway_conntrack_made made = RWAY_CONNTRACK_FOR_EXPIRED;

    if (!hold->connection) {
        hold->bucket = bucket_for_new(hold, now);
        made = hold->bucket ? take_free(hold, now) : take_another(hold);
    }
    if (made == RWAY_CONNTRACK_NO_ROOM)
        return made;
    hold->connection = connection_at(conntrack, hold->bucket, hold->way);
    hold->connection->key = *key;
    set_tag(hold->bucket, hold->way, probe->tag);
    return made;
}

uint32_t rway_conntrack_sweep(const struct rway_conntrack *conntrack, uint32_t index, uint32_t now)
{
    struct rway_conntrack_bucket *bucket = &conntrack->buckets[index];
    uint32_t freed = 0;

    rway_lock(&bucket->lock);
    for (uint32_t way = 0; way < RWAY_CONNTRACK_WAYS; way++) {
        if (bucket->states[way] == 0 || !rway_conntrack_expired(bucket->deadlines[way], now))
            continue;
        bucket->states[way] = 0;
        set_tag(bucket, way, 0);
        freed++;
    }
    rway_unlock(&bucket->lock);
    return freed;
}
