/*
 * How long a job leaves frames where they are because the ring they are to go into is full.
 *
 *      room ◄──────────── the consumer's tail moved ─────────────┐
 *       │ full                                                   │
 *       ▼                                                        │
 *      waiting ── the tail has stood still for lasts_ns ──► given up: what finds no room is dropped at once
 *
 * What bounds it is the consumer's progress and not the time that a frame has waited: a slow consumer slows its
 * producer, one that is stopped or dead holds nobody for longer than that, and a circle of waiting jobs comes apart.
 */
#ifndef RWAY_STACK_PATIENCE_H
#define RWAY_STACK_PATIENCE_H

#include "stack.h"

struct rway_patience {
    uint64_t lasts_ns; /* 0: nobody waits */
    uint64_t stuck_at; /* the consumer's tail, where it was full last */
    uint64_t since_ns; /* it was first seen there; 0: it never was full */
};

/* How many of the frames, in order, are to be dealt with now; those behind them wait. */
uint32_t rway_patience_admit(struct rway_patience *patience, struct rway_producer *out,
                             const struct rway_frame *frames, uint32_t count);

#endif
