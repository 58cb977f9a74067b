/* How a frame lies in its slots, and how its descriptor is moved: what the two halves of a ring have in common. */
#ifndef RINGWAY_SLOT_H
#define RINGWAY_SLOT_H

#include "ring.h"

_Static_assert(sizeof(struct rway_desc) == 2 * sizeof(uint64_t), "a descriptor is two words");

/* Slots for a frame of len bytes of which pushed lie in the headroom. */
static inline uint32_t rway_slots_for(const struct rway_ring *ring, uint32_t len, uint32_t pushed)
{
    uint32_t body = len - pushed;
    if (body <= ring->payload)
        return 1;
    return (body + ring->payload - 1) / ring->payload;
}

static inline bool rway_pushed_fits(const struct rway_ring *ring, uint32_t len, uint32_t pushed)
{
    return pushed <= ring->headroom - RWAY_HEADROOM_MIN && pushed <= len;
}

/* A descriptor is written and read as two words. */
union rway_desc_words {
    uint64_t words[2];
    struct rway_desc desc;
};

enum {
    RWAY_DESCS_PER_LINE = RWAY_LINE / sizeof(struct rway_desc),
    RWAY_PREFETCH_MAX = 256 /* bytes of a frame; what lies behind, the processor's own prefetcher finds */
};

static inline const uint8_t *rway_payload_at(const struct rway_ring *ring, uint64_t at)
{
    return rway_slot(ring, (uint32_t)at & ring->mask) + ring->headroom;
}

#endif
