/*
 * The inside of a bridge: which address was last seen by which port.
 *
 *      (address, VLAN) ──SipHash──► a bucket of four places, one cache line with a lock of its own
 *
 * The table is bounded, and so is each port's share of it: whoever sends from random addresses fills its own share and
 * takes no place from another port's. All of it is the agent's private memory.
 */
#ifndef RWAY_STACK_BRIDGE_H
#define RWAY_STACK_BRIDGE_H

#include "stack/pipeline.h"

enum { RWAY_BRIDGE_WAYS = 4 };

struct rway_bridge_bucket {
    uint64_t keys[RWAY_BRIDGE_WAYS];  /* address (48 bits), VLAN id (12), 1; 0: free */
    uint32_t seen[RWAY_BRIDGE_WAYS];  /* seconds */
    uint16_t ports[RWAY_BRIDGE_WAYS]; /* by which it was last seen */
    uint32_t lock;
    uint32_t pad;
} __attribute__((aligned(RWAY_LINE)));

/* What a port may still flood: frames, filled up as time goes by. */
struct rway_bridge_allowance {
    uint32_t lock;
    uint32_t frames;
    uint64_t filled_ns;
};

struct rway_bridge {
    struct rway_bridge_bucket *buckets;
    uint32_t bucket_count; /* a power of two */
    uint32_t addresses;    /* that a port may have */
    uint32_t ageing_s;
    uint32_t flood_rate; /* frames a second that come in by one port and go out by several */
    uint64_t secret[2];
    uint32_t swept;                  /* bucket to look through next; any loop */
    uint64_t now_ns;                 /* as the last loop to turn had it */
    uint32_t learnt[RWAY_PORTS_MAX]; /* addresses that each port has */
    struct rway_bridge_allowance allowances[RWAY_PORTS_MAX];
    struct rway_bridge_counts counts;
};

/* Free places of addresses whose time is over. At the top of each turn of each loop. */
void rway_bridge_turn(struct rway_bridge *bridge, uint64_t now_ns);

/* Learn where the packets of a burst come from, and find where they would go: peer_port, or a drop. */
void rway_bridge_find(struct rway_bridge *bridge, struct rway_burst *burst, uint32_t in_port);

/* May one more packet that came in by that port be flooded? Takes it from the port's allowance. */
bool rway_bridge_may_flood(struct rway_bridge *bridge, uint32_t in_port);

/* Count something; by any loop. */
static inline void rway_bridge_count(uint64_t *counter, uint64_t more)
{
    __atomic_fetch_add(counter, more, __ATOMIC_RELAXED);
}

#endif
