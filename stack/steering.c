/*
 * Steer the frames of one sending thread to queues, by flow, without reordering a flow on the way to the peer.
 *
 * The hash names one of 256 buckets, and a bucket has a queue. The peer says which queues it wants frames in, and may
 * change its mind; each bucket is then aimed at another queue, but goes there only when the peer has released all that
 * the bucket has put into its old one: nothing sent from then on can overtake it on this link. Until then its frames go
 * where they went. It is the rule of receive flow steering (RFS) in the kernel. A flow moves in its first pause, then,
 * and nobody waits for it; where frames of it stand in a full ring all the time, it stays, and is served there.
 *
 * Bucket b goes to queue b modulo the number of queues wanted: the same at every hop, so that both directions of a flow
 * find the same loop, and a loop that serves queue i of n finds its flows' targets among those it owns: i, i + n, …
 */
#include <stdlib.h>

#include "stack.h"

enum { BUCKETS = 256, WORD_BITS = 64 };

struct rway_steering {
    struct rway_region *region;
    uint32_t owned;  /* queues that this thread produces into */
    uint32_t served; /* queues that the peer wants frames in, as last looked at */
    uint8_t queue[BUCKETS];
    uint8_t target[BUCKETS];            /* another one: the bucket is moving there */
    uint64_t open[BUCKETS / WORD_BITS]; /* bit b: b is moving, and has got frames since its position was last noted */
    uint64_t last[BUCKETS];             /* of those that are moving: position behind their frames in their queue */
};

/* The number of the nth bit that is set, from 0; there must be more than n. */
static uint32_t nth_bit(uint32_t bits, uint32_t n)
{
    for (; n != 0; n--)
        bits &= bits - 1;
    return (uint32_t)__builtin_ctz(bits);
}

/* Where a bucket is to go: into the same queue at every hop, or, if that is not ours, into one of ours. */
static uint8_t steering_aim(const struct rway_steering *steering, uint32_t bucket)
{
    uint32_t wanted = nth_bit(steering->served, bucket % (uint32_t)__builtin_popcount(steering->served));
    if (steering->owned >> wanted & 1)
        return (uint8_t)wanted;
    uint32_t ours = steering->owned & steering->served ? steering->owned & steering->served : steering->owned;
    /* The buckets that get here may be each nth one: not by their lowest bits again. */
    return (uint8_t)nth_bit(ours, (bucket * 2654435761u >> 16) % (uint32_t)__builtin_popcount(ours));
}

static uint64_t steering_position(const struct rway_steering *steering, uint32_t bucket)
{
    return rway_producer_position(rway_steering_producer(steering, steering->queue[bucket]));
}

struct rway_steering *rway_steering_new(struct rway_region *region, uint32_t owned)
{
    owned &= (uint32_t)(((uint64_t)1 << rway_region_geometry(region)->queues) - 1);
    struct rway_steering *steering = owned != 0 ? calloc(1, sizeof *steering) : NULL;
    if (steering == NULL)
        return NULL;
    steering->region = region;
    steering->owned = owned;
    steering->served = rway_region_served(region);
    for (uint32_t bucket = 0; bucket < BUCKETS; bucket++)
        steering->queue[bucket] = steering->target[bucket] = steering_aim(steering, bucket);
    return steering;
}

void rway_steering_free(struct rway_steering *steering)
{
    free(steering);
}

uint32_t rway_steering_owned(const struct rway_steering *steering)
{
    return steering->owned;
}

struct rway_producer *rway_steering_producer(const struct rway_steering *steering, uint32_t queue)
{
    return rway_region_producer(steering->region, queue);
}

/* What was chosen since the last time is claimed by now, or was given up. */
static void steering_note_positions(struct rway_steering *steering)
{
    for (uint32_t word = 0; word < BUCKETS / WORD_BITS; word++)
        for (; steering->open[word] != 0; steering->open[word] &= steering->open[word] - 1) {
            uint32_t bucket = word * WORD_BITS + (uint32_t)__builtin_ctzll(steering->open[word]);
            steering->last[bucket] = steering_position(steering, bucket);
        }
}

void rway_steering_follow(struct rway_steering *steering)
{
    uint32_t served = rway_region_served(steering->region);
    steering_note_positions(steering);
    if (__builtin_expect(served == steering->served, 1))
        return;
    steering->served = served;
    for (uint32_t bucket = 0; bucket < BUCKETS; bucket++) {
        if (steering->target[bucket] == steering->queue[bucket]) /* else it is known where its own frames end */
            steering->last[bucket] = steering_position(steering, bucket);
        steering->target[bucket] = steering_aim(steering, bucket);
    }
}

static bool steering_may_move(const struct rway_steering *steering, uint32_t bucket)
{
    struct rway_producer *old = rway_steering_producer(steering, steering->queue[bucket]);
    if (steering->open[bucket / WORD_BITS] >> bucket % WORD_BITS & 1)
        return false;
    /* It looks at the peer's tail, and with acquire: what we publish from here on comes after what was released. */
    (void)rway_producer_room(old);
    return (int64_t)(rway_producer_released(old) - steering->last[bucket]) >= 0;
}

uint32_t rway_steering_choose(struct rway_steering *steering, uint32_t hash)
{
    uint32_t bucket = hash % BUCKETS;
    if (__builtin_expect(steering->queue[bucket] != steering->target[bucket], 0)) {
        if (steering_may_move(steering, bucket))
            steering->queue[bucket] = steering->target[bucket];
        else
            steering->open[bucket / WORD_BITS] |= (uint64_t)1 << bucket % WORD_BITS;
    }
    return steering->queue[bucket];
}
