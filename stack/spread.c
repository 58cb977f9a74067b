/*
 * Spread the frames of one sending thread over queues, by flow, without ever reordering a flow.
 *
 * The hash names one of 256 buckets, and a bucket has a queue. The peer says which queues it wants frames in, and may
 * change its mind; each bucket is then aimed at another queue, but goes there only when all it has put into its queue
 * has passed: nothing sent from then on can overtake it (rway_consumer_pass). Until then its frames go where they went.
 *
 *      settled ──the peer's wish changed──► moving ──all has passed──► settled, in the new queue
 *                                             │
 *                                        its queue is full
 *                                             ▼
 *                                            held ──HOLD_NS are over──► tired (moves as moving does, is not held again)
 *
 * A flow moves in its first pause, then, and nobody waits for it. A ring that is always full has no pauses: there
 * the sender waits or drops anyway, so it does so for the frames of buckets that are to move, until they can.
 *
 * Bucket b goes to queue b modulo the number of queues wanted: the same at every hop, so that both directions of a flow
 * find the same loop, and a loop that serves queue i of n finds its flows' targets among those it owns: i, i + n, …
 */
#include <stdlib.h>
#include <time.h>

#include "stack.h"

enum { BUCKETS = 256 };
static const uint64_t HOLD_NS = 1000 * 1000 * 1000; /* more than full rings take to drain; a peer may never say so */

enum state { SETTLED, MOVING, HELD, TIRED };

struct bucket {
    uint64_t last;       /* position behind its last frame in its queue */
    uint64_t held_until; /* ns */
    uint8_t queue;
    uint8_t target;
    uint8_t state; /* enum state */
    bool open;     /* chosen for a frame whose position is not known yet */
};

struct rway_spread {
    struct rway_region *region;
    uint32_t owned;  /* queues that this thread produces into */
    uint32_t served; /* queues that the peer wants frames in, as last looked at */
    uint32_t looked; /* queues whose passed is of this burst */
    uint64_t passed[RWAY_QUEUES_MAX];
    struct bucket buckets[BUCKETS];
};

/* The number of the nth bit that is set, from 0; there must be more than n. */
static uint32_t nth_bit(uint32_t bits, uint32_t n)
{
    for (; n != 0; n--)
        bits &= bits - 1;
    return (uint32_t)__builtin_ctz(bits);
}

/* Where a bucket is to go: into the same queue at every hop, or, if that is not ours, into one of ours. */
static uint32_t aim(const struct rway_spread *spread, uint32_t number)
{
    uint32_t wanted = nth_bit(spread->served, number % (uint32_t)__builtin_popcount(spread->served));
    if (spread->owned >> wanted & 1)
        return wanted;
    uint32_t ours = spread->owned & spread->served ? spread->owned & spread->served : spread->owned;
    /* The buckets that get here may be each nth one: not by their lowest bits again. */
    return nth_bit(ours, (number * 2654435761u >> 16) % (uint32_t)__builtin_popcount(ours));
}

static struct rway_producer *producer_of(const struct rway_spread *spread, uint32_t queue)
{
    return rway_region_producer(spread->region, queue);
}

struct rway_spread *rway_spread_new(struct rway_region *region, uint32_t owned)
{
    owned &= (uint32_t)(((uint64_t)1 << rway_region_geometry(region)->queues) - 1);
    struct rway_spread *spread = owned != 0 ? calloc(1, sizeof *spread) : NULL;
    if (spread == NULL)
        return NULL;
    spread->region = region;
    spread->owned = owned;
    spread->served = rway_region_served(region);
    for (uint32_t number = 0; number < BUCKETS; number++) {
        struct bucket *bucket = &spread->buckets[number];
        bucket->queue = bucket->target = (uint8_t)aim(spread, number);
        bucket->last = rway_producer_position(producer_of(spread, bucket->queue));
    }
    return spread;
}

void rway_spread_free(struct rway_spread *spread)
{
    free(spread);
}

uint32_t rway_spread_owned(const struct rway_spread *spread)
{
    return spread->owned;
}

struct rway_producer *rway_spread_producer(const struct rway_spread *spread, uint32_t queue)
{
    return producer_of(spread, queue);
}

void rway_spread_follow(struct rway_spread *spread)
{
    uint32_t served = rway_region_served(spread->region);
    spread->looked = 0;
    if (__builtin_expect(served == spread->served, 1))
        return;
    spread->served = served;
    for (uint32_t number = 0; number < BUCKETS; number++) {
        struct bucket *bucket = &spread->buckets[number];
        uint32_t target = aim(spread, number);
        if (target == bucket->target)
            continue;
        bucket->target = (uint8_t)target;
        bucket->state = target == bucket->queue ? SETTLED : MOVING;
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The peer's counters are looked at once in a burst for each queue that something is to leave. */
static uint64_t passed(struct rway_spread *spread, uint32_t queue)
{
    if (!(spread->looked >> queue & 1)) {
        spread->passed[queue] = rway_producer_passed(producer_of(spread, queue));
        spread->looked |= (uint32_t)1 << queue;
    }
    return spread->passed[queue];
}

static bool has_passed(struct rway_spread *spread, const struct bucket *bucket)
{
    uint64_t position = rway_producer_position(producer_of(spread, bucket->queue));
    /* What was claimed and then given back is nowhere. */
    uint64_t last = (int64_t)(bucket->last - position) > 0 ? position : bucket->last;
    return !bucket->open && (int64_t)(passed(spread, bucket->queue) - last) >= 0;
}

static void move(struct rway_spread *spread, struct bucket *bucket)
{
    bucket->queue = bucket->target;
    bucket->state = SETTLED;
    bucket->last = rway_producer_position(producer_of(spread, bucket->queue));
}

int32_t rway_spread_choose(struct rway_spread *spread, uint32_t hash)
{
    struct bucket *bucket = &spread->buckets[hash % BUCKETS];
    if (__builtin_expect(bucket->state != SETTLED, 0)) {
        if (has_passed(spread, bucket))
            move(spread, bucket);
        else if (bucket->state == HELD && now_ns() < bucket->held_until)
            return RWAY_SPREAD_HELD - bucket->queue;
        else if (bucket->state == HELD)
            bucket->state = TIRED;
    }
    bucket->open = true;
    return bucket->queue;
}

void rway_spread_note(struct rway_spread *spread, uint32_t hash, int full)
{
    struct bucket *bucket = &spread->buckets[hash % BUCKETS];
    bucket->open = false;
    if (!full) {
        bucket->last = rway_producer_position(producer_of(spread, bucket->queue));
    } else if (bucket->state == MOVING) {
        bucket->state = HELD;
        bucket->held_until = now_ns() + HOLD_NS;
    }
}
