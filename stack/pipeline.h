/*
 * A stack as one loop runs it: its functions in order, and its ports to send by. It is a hook of the loop; the jobs
 * that bring it packets stand in wire.c and bridge_job.c.
 */
#ifndef RWAY_STACK_PIPELINE_H
#define RWAY_STACK_PIPELINE_H

#include "stack/function.h"
#include "stack/outlet.h"

struct rway_step {
    const struct rway_function *function;
    void *state;
};

struct rway_pipeline {
    struct rway_hook hook;
    uint64_t now_ns; /* of the last timer tick, in this turn */
    uint32_t step_count;
    struct rway_step steps[RWAY_FUNCTIONS_MAX];
    struct rway_outlet *outlets[RWAY_PORTS_MAX]; /* by port; NULL: it is away */
    bool runs_others;                            /* functions that are not our own */
    uint64_t touched;                            /* ports that packets of this burst leave by */
    struct rway_bridge *bridge;                  /* NULL, unless that is the stack's mode */
};

/* A burst from one in-queue. */
struct rway_burst {
    uint32_t count;
    struct rway_frame taken[RWAY_BURST];
    struct rway_packet packets[RWAY_BURST];
};

/* The filter as a function, or, where it remembers connections, connection tracking; the filter is its owner. */
const struct rway_function *rway_filter_function(struct rway_filter *filter);

/*
 * Before functions see frames that were peeked from in: those of others may crash over one of them, and the next
 * incarnation is not to be given it again. What a kill leaves of them is counted as restart.
 */
static inline void rway_pipeline_begin(const struct rway_pipeline *pipeline, struct rway_consumer *in,
                                       const struct rway_frame *taken, uint32_t count)
{
    if (__builtin_expect(pipeline->runs_others, 0) && count != 0)
        rway_consumer_begin(in, &taken[count - 1]);
}

/* Copy and parse the headers of frames that were peeked from in. */
void rway_burst_open(struct rway_burst *burst, struct rway_consumer *in, uint32_t taken, uint32_t in_port,
                     uint32_t peer_port);

/* Have each function in turn decide over what none before it has decided. */
void rway_pipeline_run(struct rway_pipeline *pipeline, struct rway_burst *burst);

/* Put a packet to the outlet it leaves by; what leaves by none is dropped and counted at in. */
void rway_pipeline_direct(struct rway_pipeline *pipeline, struct rway_packet *packet, struct rway_consumer *in);

/* Copy what leaves into out-slots, release the input, publish: the ports that the burst leaves by, and those others. */
void rway_pipeline_emit(struct rway_pipeline *pipeline, struct rway_consumer *in, uint64_t others);

#endif
