/*
 * How a forwarder knows that frames it sent on have passed, so that it can say so of those it took them from.
 *
 * It notes how far it has read its input and, of each output, how far it has written. Once the consumers behind have
 * said of all those outputs that so much has passed, it says it of the input, and notes anew. So "passed" holds for the
 * whole way behind: of a flow that changes its queue at the start of a chain, nothing is under way anywhere.
 */
#ifndef RWAY_STACK_TRAIL_H
#define RWAY_STACK_TRAIL_H

#include "stack.h"

struct rway_trail {
    bool open;      /* noted, and waiting for it to pass */
    uint64_t taken; /* position in the input: noted last */
    uint64_t sent[RWAY_QUEUES_MAX];
};

/* Look, say and note; between bursts, when all that was taken is released and all that was claimed is published. */
void rway_trail_step(struct rway_trail *trail, struct rway_consumer *in, struct rway_producer *const *out,
                     uint32_t out_count);

#endif
