/*
 * A bridge's table of addresses: learning, ageing, and what may be flooded. See bridge.h.
 *
 *      the packet's source          what becomes of it
 *      a group's                    it is dropped: no station has it (IEEE 802.1Q 8.7)
 *      known, by this port          seen again
 *      known, by another port       it has moved; the new port's share takes it, or it stays where it was
 *      unknown                      learnt, if the port's share and its bucket have room
 *
 *      its destination              where it goes
 *      01:80:c2:00:00:00 to 0f      nowhere: those are for the next bridge alone (IEEE 802.1Q table 8-1)
 *      known, by the port it is on  nowhere
 *      known, by another            there
 *      a group's, unknown           by all other ports, as far as the port's allowance goes
 *
 * Learning comes before the functions, so that they know both ports of a packet: connection tracking needs that.
 */
#include "bridge.h"
#include "siphash.h"
#include "spinlock.h"

#include <stdlib.h>
#include <sys/random.h>

enum { SWEPT = 4, ALLOWANCE_MS = 100, ALLOWANCE_MIN = 2 * RWAY_BURST, NS_PER_S = 1000000000 };

struct rway_bridge *rway_bridge_new(uint32_t addresses, uint32_t ports, uint32_t ageing_s, uint32_t flood_rate)
{
    struct rway_bridge *bridge = calloc(1, sizeof *bridge);
    uint64_t wanted = (uint64_t)addresses * ports; /* buckets: so that four places are rarely all taken */
    if (bridge == NULL || addresses == 0 || ports == 0 || ports > RWAY_PORTS_MAX || wanted > 1u << 24) {
        free(bridge);
        return NULL;
    }
    bridge->bucket_count = 1;
    while (bridge->bucket_count < wanted)
        bridge->bucket_count *= 2;
    size_t size = bridge->bucket_count * sizeof *bridge->buckets;
    bridge->buckets = aligned_alloc(RWAY_LINE, size);
    if (bridge->buckets == NULL || getrandom(bridge->secret, sizeof bridge->secret, 0) != sizeof bridge->secret) {
        rway_bridge_free(bridge);
        return NULL;
    }
    memset(bridge->buckets, 0, size);
    bridge->addresses = addresses;
    bridge->ageing_s = ageing_s;
    bridge->flood_rate = flood_rate;
    return bridge;
}

void rway_bridge_free(struct rway_bridge *bridge)
{
    if (bridge == NULL)
        return;
    free(bridge->buckets);
    free(bridge);
}

static uint64_t key_of(const uint8_t address[6], uint16_t vlan)
{
    uint64_t key = 0;
    for (int i = 0; i < 6; i++)
        key = key << 8 | address[i];
    return key << 16 | (uint64_t)(vlan & 0x0fff) << 4 | 1;
}

static struct rway_bridge_bucket *bucket_of(const struct rway_bridge *bridge, uint64_t key)
{
    const uint64_t words[2] = {key, 0};
    return &bridge->buckets[rway_siphash(1, 3, bridge->secret, words, 2) & (bridge->bucket_count - 1)];
}

static uint32_t now_s(const struct rway_bridge *bridge)
{
    return (uint32_t)(rway_read_once(&bridge->now_ns) / NS_PER_S);
}

static bool is_over(const struct rway_bridge *bridge, const struct rway_bridge_bucket *bucket, uint32_t way,
                    uint32_t now)
{
    return bucket->keys[way] != 0 && (int32_t)(now - bucket->seen[way]) > (int32_t)bridge->ageing_s;
}

/* The bucket's lock is held. */
static void forget(struct rway_bridge *bridge, struct rway_bridge_bucket *bucket, uint32_t way)
{
    __atomic_fetch_sub(&bridge->learnt[bucket->ports[way]], 1, __ATOMIC_RELAXED);
    bucket->keys[way] = 0;
}

static void sweep(struct rway_bridge *bridge, struct rway_bridge_bucket *bucket, uint32_t now)
{
    rway_lock(&bucket->lock);
    for (uint32_t way = 0; way < RWAY_BRIDGE_WAYS; way++)
        if (is_over(bridge, bucket, way, now)) {
            forget(bridge, bucket, way);
            rway_bridge_count(&bridge->counts.aged, 1);
        }
    rway_unlock(&bucket->lock);
}

void rway_bridge_turn(struct rway_bridge *bridge, uint64_t now_ns)
{
    rway_write_once(&bridge->now_ns, now_ns);
    uint32_t at = __atomic_fetch_add(&bridge->swept, SWEPT, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < SWEPT; i++)
        sweep(bridge, &bridge->buckets[(at + i) & (bridge->bucket_count - 1)], now_s(bridge));
}

void rway_bridge_forget(struct rway_bridge *bridge, uint32_t port)
{
    for (uint32_t i = 0; i < bridge->bucket_count; i++) {
        struct rway_bridge_bucket *bucket = &bridge->buckets[i];
        rway_lock(&bucket->lock);
        for (uint32_t way = 0; way < RWAY_BRIDGE_WAYS; way++)
            if (bucket->keys[way] != 0 && bucket->ports[way] == port)
                forget(bridge, bucket, way);
        rway_unlock(&bucket->lock);
    }
}

/* One more address for a port, if its share has room. */
static bool take_share(struct rway_bridge *bridge, uint32_t port)
{
    if (__atomic_add_fetch(&bridge->learnt[port], 1, __ATOMIC_RELAXED) <= bridge->addresses)
        return true;
    __atomic_fetch_sub(&bridge->learnt[port], 1, __ATOMIC_RELAXED);
    rway_bridge_count(&bridge->counts.not_learnt, 1);
    return false;
}

static void learn_new(struct rway_bridge *bridge, struct rway_bridge_bucket *bucket, uint64_t key, uint32_t port,
                      uint32_t now)
{
    uint32_t way = 0;
    while (way < RWAY_BRIDGE_WAYS && bucket->keys[way] != 0 && !is_over(bridge, bucket, way, now))
        way++;
    if (way == RWAY_BRIDGE_WAYS) {
        rway_bridge_count(&bridge->counts.not_learnt, 1);
        return;
    }
    if (!take_share(bridge, port))
        return;
    if (bucket->keys[way] != 0) {
        forget(bridge, bucket, way);
        rway_bridge_count(&bridge->counts.aged, 1);
    }
    bucket->keys[way] = key;
    bucket->ports[way] = (uint16_t)port;
    bucket->seen[way] = now;
    rway_bridge_count(&bridge->counts.learnt, 1);
}

static void move_to(struct rway_bridge *bridge, struct rway_bridge_bucket *bucket, uint32_t way, uint32_t port)
{
    if (!take_share(bridge, port))
        return;
    __atomic_fetch_sub(&bridge->learnt[bucket->ports[way]], 1, __ATOMIC_RELAXED);
    bucket->ports[way] = (uint16_t)port;
    rway_bridge_count(&bridge->counts.moved, 1);
}

static void learn(struct rway_bridge *bridge, uint64_t key, uint32_t port, uint32_t now)
{
    struct rway_bridge_bucket *bucket = bucket_of(bridge, key);
    uint32_t way = 0;
    rway_lock(&bucket->lock);
    while (way < RWAY_BRIDGE_WAYS && bucket->keys[way] != key)
        way++;
    if (way == RWAY_BRIDGE_WAYS) {
        learn_new(bridge, bucket, key, port, now);
    } else {
        if (bucket->ports[way] != port)
            move_to(bridge, bucket, way, port);
        if (bucket->ports[way] == port)
            bucket->seen[way] = now;
    }
    rway_unlock(&bucket->lock);
}

static uint32_t find(const struct rway_bridge *bridge, uint64_t key, uint32_t now)
{
    struct rway_bridge_bucket *bucket = bucket_of(bridge, key);
    uint32_t port = RWAY_PORT_FLOOD;
    rway_lock(&bucket->lock);
    for (uint32_t way = 0; way < RWAY_BRIDGE_WAYS; way++)
        if (bucket->keys[way] == key && !is_over(bridge, bucket, way, now))
            port = bucket->ports[way];
    rway_unlock(&bucket->lock);
    return port;
}

static bool is_for_next_bridge(const uint8_t address[6])
{
    static const uint8_t RESERVED[5] = {0x01, 0x80, 0xc2, 0x00, 0x00};
    return memcmp(address, RESERVED, sizeof RESERVED) == 0 && address[5] < 0x10;
}

static void find_one(struct rway_bridge *bridge, struct rway_packet *packet, uint32_t in_port, uint32_t now)
{
    const uint8_t *to = packet->bytes, *from = packet->bytes + 6;
    if (packet->private_len < RWAY_ETHER_HEADER || from[0] & 1) {
        rway_bridge_count(&bridge->counts.bad_source, 1);
        rway_packet_drop(packet, RWAY_DROP_MALFORMED);
        return;
    }
    learn(bridge, key_of(from, packet->headers.vlan), in_port, now);
    packet->peer_port = RWAY_PORT_FLOOD;
    if (is_for_next_bridge(to)) {
        rway_bridge_count(&bridge->counts.reserved, 1);
        rway_packet_drop(packet, RWAY_DROP_POLICY);
        return;
    }
    if (!(to[0] & 1))
        packet->peer_port = (uint16_t)find(bridge, key_of(to, packet->headers.vlan), now);
    if (packet->peer_port == in_port) {
        rway_bridge_count(&bridge->counts.same_port, 1);
        rway_packet_drop(packet, RWAY_DROP_POLICY);
    }
}

void rway_bridge_find(struct rway_bridge *bridge, struct rway_burst *burst, uint32_t in_port)
{
    uint32_t now = now_s(bridge);
    for (uint32_t i = 0; i < burst->count; i++)
        if (burst->packets[i].verdict != RWAY_VERDICT_DROP)
            find_one(bridge, &burst->packets[i], in_port, now);
}

/* As many as time has brought; never more than a tenth of a second's worth, or two bursts. */
static void fill_up(const struct rway_bridge *bridge, struct rway_bridge_allowance *allowance, uint64_t now_ns)
{
    uint64_t most = (uint64_t)bridge->flood_rate * ALLOWANCE_MS / 1000;
    most = most < ALLOWANCE_MIN ? ALLOWANCE_MIN : most;
    uint64_t passed = allowance->filled_ns == 0 ? NS_PER_S : now_ns - allowance->filled_ns;
    passed = passed > NS_PER_S ? NS_PER_S : passed;
    uint64_t more = passed * bridge->flood_rate / NS_PER_S;
    if (more == 0 && allowance->filled_ns != 0)
        return;
    uint64_t frames = allowance->filled_ns == 0 ? most : allowance->frames + more;
    allowance->frames = (uint32_t)(frames > most ? most : frames);
    allowance->filled_ns = now_ns;
}

bool rway_bridge_may_flood(struct rway_bridge *bridge, uint32_t in_port)
{
    struct rway_bridge_allowance *allowance = &bridge->allowances[in_port];
    rway_lock(&allowance->lock);
    fill_up(bridge, allowance, rway_read_once(&bridge->now_ns));
    bool may = allowance->frames != 0;
    allowance->frames -= may;
    rway_unlock(&allowance->lock);
    return may;
}

void rway_bridge_read(const struct rway_bridge *bridge, struct rway_bridge_counts *counts)
{
    const uint64_t *from = (const uint64_t *)&bridge->counts;
    uint64_t *to = (uint64_t *)counts;
    for (size_t i = 0; i < sizeof *counts / sizeof *to; i++)
        to[i] = rway_read_once(&from[i]);
    counts->addresses = 0;
    for (uint32_t port = 0; port < RWAY_PORTS_MAX; port++)
        counts->addresses += rway_read_once(&bridge->learnt[port]);
}
