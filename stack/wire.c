/*
 * Mode "wire": what comes in by one port leaves by another, past the stack's functions.
 *
 * The bytes judged are the bytes sent: the headers are copied into private memory, judged there, and it is that copy
 * that goes into the out-slot; the rest, which no function has looked at, follows straight from the in-slot. So a
 * peer that rewrites its slot after the verdict changes nothing that was judged, and of a denied frame no byte leaves.
 * Input is released before output is published: whoever dies in between has lost frames, never doubled them.
 *
 * Where all that comes in goes out by one ring, frames wait for room in it: those that do not fit are left in the
 * in-ring, unjudged, so that none is judged twice, and the pressure goes back to their senders (patience.h says for how
 * long), who is told how far away the reason lies. It is the job that waits and not its thread: the loop's other jobs
 * go on, and the loop sleeps on the room as it does on frames. Over steering, or into a ring that several inputs share,
 * one slow output would hold up the others, or one input the others: there a full ring drops.
 *
 * A burst goes through in phases, so that the cache misses of one frame overlap with those of the next:
 *
 *      peek what fits ─► copy and parse headers ─► functions ─► claim all out-slots ─► copy ─► release in, publish out
 */
#include "patience.h"
#include "pipeline.h"

#include <stdlib.h>

struct wire {
    struct rway_job job;
    struct rway_pipeline *pipeline;
    struct rway_consumer *in;
    struct rway_producer *out; /* the one out-queue that is waited for; NULL: a full ring drops */
    uint32_t in_port;
    uint32_t out_port;
    uint64_t unsettled; /* ports that the last burst left by */
    struct rway_patience patience;
    uint32_t wanted; /* slots of the out-ring for the first frame left in the in-ring; 0: none is left */
    struct rway_burst burst;
};

/* Those for which there is room, or which are not waited for; and how much the first of the others needs. */
static uint32_t wire_admit(struct wire *wire, const struct rway_frame *frames, uint32_t count)
{
    uint32_t admitted = rway_patience_admit(&wire->patience, wire->out, frames, count);
    wire->wanted = admitted != count ? rway_producer_slots(wire->out, frames[admitted].len, 0) : 0;
    return admitted;
}

/* The same where functions may put headers in front: room for them, so that none is dropped that was to wait. */
static __attribute__((noinline)) uint32_t wire_admit_longer(struct wire *wire, uint32_t count)
{
    struct rway_frame longer[RWAY_BURST];
    for (uint32_t i = 0; i < count; i++) {
        longer[i] = wire->burst.taken[i];
        longer[i].len += RWAY_PUSH_MAX;
    }
    return wire_admit(wire, longer, count);
}

/* Frames to deal with in this turn; the others stay where they are. */
static uint32_t wire_take(struct wire *wire)
{
    struct rway_frame *taken = wire->burst.taken;
    uint32_t peeked = rway_ring_peek(wire->in, taken, RWAY_BURST);
    if (wire->out == NULL)
        return peeked;
    uint32_t admitted = wire->pipeline->runs_others ? wire_admit_longer(wire, peeked) : wire_admit(wire, taken, peeked);
    if (__builtin_expect(admitted != peeked, 0))
        rway_consumer_put_back(wire->in, &taken[admitted], peeked - admitted);
    return admitted;
}

static uint32_t wire_run(struct rway_job *job)
{
    struct wire *wire = (struct wire *)job;
    struct rway_pipeline *pipeline = wire->pipeline;
    uint32_t taken = wire_take(wire);
    rway_pipeline_begin(pipeline, wire->in, wire->burst.taken, taken);
    rway_burst_open(&wire->burst, wire->in, taken, wire->in_port, wire->out_port);
    rway_pipeline_run(pipeline, &wire->burst);
    for (uint32_t i = 0; i < wire->burst.count; i++)
        rway_pipeline_direct(pipeline, &wire->burst.packets[i], wire->in);
    uint64_t touched = pipeline->touched;
    rway_pipeline_emit(pipeline, wire->in, wire->unsettled | (uint64_t)1 << wire->out_port);
    wire->unsettled = touched;
    rway_consumer_stall(wire->in, wire->patience.depth);
    return taken;
}

static void wire_arm(struct rway_job *job, struct rway_waiter *waiter)
{
    struct wire *wire = (struct wire *)job;
    if (wire->wanted != 0)
        rway_waiter_add_producer(waiter, wire->out, wire->wanted);
    else
        rway_waiter_add_consumer(waiter, wire->in);
}

static void wire_free(struct rway_job *job)
{
    struct wire *wire = (struct wire *)job;
    rway_consumer_settle(wire->in);
    rway_consumer_stall(wire->in, 0);
    free(wire);
}

struct rway_job *rway_wire_new(struct rway_pipeline *pipeline, struct rway_consumer *in, uint32_t in_port,
                               uint32_t out_port, uint64_t patience_us)
{
    const struct rway_outlet *outlet = out_port < RWAY_PORTS_MAX ? pipeline->outlets[out_port] : NULL;
    struct wire *wire = outlet != NULL && in_port < RWAY_PORTS_MAX ? calloc(1, sizeof *wire) : NULL;
    if (wire == NULL)
        return NULL;
    wire->job = (struct rway_job){.run = wire_run, .arm = wire_arm, .free = wire_free};
    wire->pipeline = pipeline;
    wire->in = in;
    wire->out = outlet->steering == NULL ? outlet->ways[0].out : NULL;
    wire->in_port = in_port;
    wire->out_port = out_port;
    rway_patience_set(&wire->patience, patience_us);
    return &wire->job;
}

void rway_wire_wait(struct rway_job *job, uint64_t patience_us)
{
    rway_patience_set(&((struct wire *)job)->patience, patience_us);
}
