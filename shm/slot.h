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

/* A descriptor is loaded once; a peer that rewrites it later changes nothing here. */
static inline struct rway_desc rway_desc_fetch(const struct rway_ring *ring, uint64_t at)
{
    union rway_desc_words fetched;
    const uint64_t *shared = (const uint64_t *)&ring->descs[(uint32_t)at & ring->mask];
    fetched.words[0] = rway_read_once(&shared[0]);
    fetched.words[1] = rway_read_once(&shared[1]);
    return fetched.desc;
}

/* What a bad peer would gain without each check: a read past the slots, a frame of somebody's old bytes, a loop. */
static inline int rway_desc_check(const struct rway_ring *ring, const struct rway_desc *desc, uint64_t at,
                                  uint64_t available)
{
    bool plain = desc->kind == RWAY_DESC_FRAME && desc->slots == 1 && desc->pushed == 0 && desc->len <= ring->payload;
    if (__builtin_expect(plain, 1) && !(desc->flags & ~RWAY_FLAGS_KNOWN) && desc->len >= RWAY_FRAME_MIN &&
        desc->len <= ring->frame_max)
        return RWAY_WHOLE;
    if (desc->flags & ~RWAY_FLAGS_KNOWN)
        return RWAY_BROKEN_FLAGS;
    if (desc->kind != RWAY_DESC_FRAME)
        return RWAY_BROKEN_KIND;
    if (desc->len < RWAY_FRAME_MIN || desc->len > ring->frame_max)
        return RWAY_BROKEN_LENGTH;
    if (!rway_pushed_fits(ring, desc->len, desc->pushed))
        return RWAY_BROKEN_PUSHED;
    if (desc->slots != rway_slots_for(ring, desc->len, desc->pushed))
        return RWAY_BROKEN_SLOTS;
    if (desc->slots > available)
        return RWAY_BROKEN_INCOMPLETE;
    for (uint32_t i = 1; i < desc->slots; i++)
        if (rway_desc_fetch(ring, at + i).kind != RWAY_DESC_CONTINUATION)
            return RWAY_BROKEN_KIND;
    return RWAY_WHOLE;
}

enum {
    RWAY_DESCS_PER_LINE = RWAY_LINE / sizeof(struct rway_desc),
    /*
     * Bytes of a frame; what lies behind, the processor's own prefetcher finds. A burst of 64 frames comes in while one
     * goes out: at 128 B that is half of a first-level cache of 32 KiB, at 256 B all of it.
     */
    RWAY_PREFETCH_MAX = 128
};

static inline const uint8_t *rway_payload_at(const struct rway_ring *ring, uint64_t at)
{
    return rway_slot(ring, (uint32_t)at & ring->mask) + ring->headroom;
}

#endif
