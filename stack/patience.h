/*
 * How long a job leaves frames where they are because the ring they are to go into is full.
 *
 *      room ◄──────────── the consumer's tail moved ─────────────┐
 *       │ full                                                   │
 *       ▼                                                        │
 *      waiting ── the tail has stood still for too long ──► given up: what finds no room is dropped at once
 *
 * What bounds it is the consumer's progress and not the time that a frame has waited: a slow consumer slows its
 * producer, one that is stopped or dead holds nobody for ever, and a circle of waiting jobs comes apart.
 *
 * The time is what the job has looked on for: of the time between two looks no more counts than a job sleeps. So a
 * machine that stood still as a whole, or a job that had no processor itself, gives nobody up.
 *
 * Too long is lasts_ns for a consumer that does not itself wait, and as much again for each of those who
 * wait in a row from it on (`stalled` in layout.h). So in a chain before a dead end it is the last job that gives up;
 * then all others' rings move.
 */
#ifndef RWAY_STACK_PATIENCE_H
#define RWAY_STACK_PATIENCE_H

#include "stack.h"

struct rway_patience {
    uint64_t lasts_ns;  /* 0: nobody waits; written by any thread */
    uint64_t stuck_at;  /* the consumer's tail, where it was full last */
    uint64_t looked_ns; /* when it was full last; 0: it never was */
    uint64_t waited_ns; /* since it was first seen there, or fewer were seen to wait behind it */
    uint32_t behind;    /* waiting consumers behind the ring, as seen last */
    bool given_up;      /* until the tail moves */
    uint32_t depth;     /* of the stall that the last admit was part of, for rway_consumer_stall; 0: nothing waits */
};

/* How long to wait from now on; 0: not at all. Any thread. */
void rway_patience_set(struct rway_patience *patience, uint64_t lasts_us);

/* How many of the frames, in order, are to be dealt with now; those behind them wait, and depth says so. */
uint32_t rway_patience_admit(struct rway_patience *patience, struct rway_producer *out, const struct rway_frame *frames,
                             uint32_t count);

/* A full ring with its tail there and so many waiting behind it: is the time over by now_ns? Pure, but for patience. */
bool rway_patience_is_over(struct rway_patience *patience, uint64_t tail, uint32_t behind, uint64_t now_ns);

#endif
