/* Frames copied into a link's queues by flow, for applications that keep their frames in memory of their own. */
#include <string.h>

#include "stack.h"

enum { BURST = 32 };

/* A burst on its way into the rings: claimed and filled, not yet published. */
struct burst {
    uint32_t count;
    uint32_t queues; /* that it has frames for */
    uint8_t queue[BURST];
    struct rway_frame frames[BURST];
};

static uint32_t hash_of(const uint8_t *bytes, uint32_t len)
{
    struct rway_headers headers;
    rway_parse(bytes, len, len, &headers); /* what cannot be judged has no headers: all of that is one flow */
    return rway_flow_hash(&headers);
}

static void scatter(const struct rway_producer *producer, const struct rway_frame *frame, const uint8_t *bytes)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t count = rway_producer_pieces(producer, frame, pieces);
    for (uint32_t i = 0; i < count; i++) {
        memcpy(pieces[i].data, bytes, pieces[i].len);
        bytes += pieces[i].len;
    }
}

/* Each queue's frames are published in the order of their claims. */
static void publish(struct rway_steering *steering, const struct burst *burst)
{
    for (uint32_t left = burst->queues; left != 0; left &= left - 1) {
        uint32_t queue = (uint32_t)__builtin_ctz(left);
        struct rway_frame frames[BURST];
        uint32_t count = 0;
        for (uint32_t i = 0; i < burst->count; i++)
            if (burst->queue[i] == queue)
                frames[count++] = burst->frames[i];
        rway_ring_publish(rway_steering_producer(steering, queue), frames, count);
    }
}

/* Returns whether the frame was dealt with; if not, *chosen is the queue that has no room for it. */
static bool add(struct rway_steering *steering, struct burst *burst, const uint8_t *bytes, uint32_t len,
                const struct rway_offload *offload, uint32_t *chosen)
{
    uint32_t hash = hash_of(bytes, len);
    *chosen = rway_steering_choose(steering, hash);
    struct rway_producer *producer = rway_steering_producer(steering, *chosen);
    struct rway_frame *frame = &burst->frames[burst->count];
    *frame = (struct rway_frame){.len = len, .flags = RWAY_FLAG_HASH, .hash = hash};
    int unfit = rway_producer_fits(producer, len, 0);
    if (!unfit && rway_offload_check(offload, len) != 0)
        unfit = RWAY_DROP_OFFLOAD + 1;
    bool claimed = !unfit && rway_ring_claim(producer, frame, 1) == 1;
    if (unfit)
        rway_producer_drop(producer, (uint32_t)unfit - 1, 1);
    if (claimed) {
        scatter(producer, frame, bytes);
        rway_frame_set_offload(producer, frame, offload);
        burst->queue[burst->count++] = (uint8_t)*chosen;
    }
    burst->queues |= (uint32_t)1 << *chosen; /* a drop, too, is shown by a publish */
    return unfit || claimed;
}

uint32_t rway_steering_copy_in(struct rway_steering *steering, const uint8_t *bytes, const uint32_t *lens,
                               const struct rway_offload *offloads, uint32_t count, uint32_t *stopped_by)
{
    static const struct rway_offload nothing_left = {0};
    uint32_t done = 0;
    bool going = true;
    while (going && done < count) {
        struct burst burst;
        burst.count = burst.queues = 0;
        rway_steering_follow(steering);
        for (uint32_t i = 0; i < BURST && done < count; i++) {
            going = add(steering, &burst, bytes, lens[done], offloads ? &offloads[done] : &nothing_left, stopped_by);
            if (!going)
                break;
            bytes += lens[done++];
        }
        publish(steering, &burst);
    }
    return done;
}
