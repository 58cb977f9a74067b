/*
 * Mode "bridge": what comes in leaves by the port where its destination was last seen, or by all others; never by the
 * port it came in by. One job for all ports of a loop: it takes a burst of each in turn, past the stack's functions.
 *
 * Several outputs share an input here, so a full ring drops: one slow port is not to stop the others. A flooded frame
 * is copied once for each port that it leaves by, straight from its in-slot.
 */
#include "bridge.h"

#include <stdlib.h>

enum { INLETS_MAX = RWAY_PORTS_MAX * RWAY_QUEUES_MAX };

struct inlet {
    struct rway_consumer *in;
    uint32_t port;
};

struct bridge_job {
    struct rway_job job;
    struct rway_pipeline *pipeline;
    uint64_t ports; /* that have an outlet */
    struct rway_burst burst;
    uint32_t inlet_count;
    struct inlet inlets[INLETS_MAX];
};

static void flood(struct bridge_job *bridge_job, struct rway_packet *packet, const struct inlet *inlet)
{
    struct rway_pipeline *pipeline = bridge_job->pipeline;
    struct rway_bridge_counts *counts = &pipeline->bridge->counts;
    uint64_t others = bridge_job->ports & ~((uint64_t)1 << inlet->port);
    if (others == 0 || !rway_bridge_may_flood(pipeline->bridge, inlet->port)) {
        rway_bridge_count(&counts->flood_limited, others != 0);
        rway_consumer_drop(inlet->in, others != 0 ? RWAY_DROP_POLICY : RWAY_DROP_DOWN, 1);
        return;
    }
    rway_bridge_count(&counts->flooded, 1);
    rway_bridge_count(&counts->copies, (uint64_t)__builtin_popcountll(others) - 1);
    rway_consumer_replicated(inlet->in, (uint64_t)__builtin_popcountll(others) - 1);
    pipeline->touched |= others;
    for (; others != 0; others &= others - 1)
        rway_outlet_add(pipeline->outlets[__builtin_ctzll(others)], packet);
}

static void direct(struct bridge_job *bridge_job, struct rway_packet *packet, const struct inlet *inlet)
{
    if (packet->verdict == RWAY_VERDICT_NEXT && packet->peer_port == RWAY_PORT_FLOOD) {
        flood(bridge_job, packet, inlet);
        return;
    }
    if (packet->verdict == RWAY_VERDICT_OUT && packet->out_port == inlet->port) {
        rway_bridge_count(&bridge_job->pipeline->bridge->counts.same_port, 1);
        rway_packet_drop(packet, RWAY_DROP_POLICY);
    }
    rway_pipeline_direct(bridge_job->pipeline, packet, inlet->in);
}

/* Returns how many frames were taken; *touched: the ports that they left by. */
static uint32_t run_inlet(struct bridge_job *bridge_job, const struct inlet *inlet, uint64_t *touched)
{
    struct rway_pipeline *pipeline = bridge_job->pipeline;
    struct rway_burst *burst = &bridge_job->burst;
    uint32_t taken = rway_ring_peek(inlet->in, burst->taken, RWAY_BURST);
    rway_pipeline_begin(pipeline, inlet->in, burst->taken, taken);
    rway_burst_open(burst, inlet->in, taken, inlet->port, RWAY_PORT_FLOOD);
    rway_bridge_find(pipeline->bridge, burst, inlet->port);
    rway_pipeline_run(pipeline, burst);
    for (uint32_t i = 0; i < burst->count; i++)
        direct(bridge_job, &burst->packets[i], inlet);
    *touched |= pipeline->touched;
    rway_pipeline_emit(pipeline, inlet->in, 0);
    return taken;
}

static uint32_t bridge_run(struct rway_job *job)
{
    struct bridge_job *bridge_job = (struct bridge_job *)job;
    uint64_t touched = 0;
    uint32_t taken = 0;
    for (uint32_t i = 0; i < bridge_job->inlet_count; i++)
        taken += run_inlet(bridge_job, &bridge_job->inlets[i], &touched);
    /* What got nothing in this turn settles what the one before has put off. */
    for (uint64_t left = bridge_job->ports & ~touched; left != 0; left &= left - 1)
        rway_outlet_publish(bridge_job->pipeline->outlets[__builtin_ctzll(left)]);
    return taken;
}

static void bridge_arm(struct rway_job *job, struct rway_waiter *waiter)
{
    const struct bridge_job *bridge_job = (struct bridge_job *)job;
    for (uint32_t i = 0; i < bridge_job->inlet_count; i++)
        rway_waiter_add_consumer(waiter, bridge_job->inlets[i].in);
}

static void bridge_job_free(struct rway_job *job)
{
    struct bridge_job *bridge_job = (struct bridge_job *)job;
    for (uint32_t i = 0; i < bridge_job->inlet_count; i++)
        rway_consumer_settle(bridge_job->inlets[i].in);
    free(bridge_job);
}

struct rway_job *rway_bridge_job_new(struct rway_pipeline *pipeline, struct rway_bridge *bridge)
{
    struct bridge_job *bridge_job = calloc(1, sizeof *bridge_job);
    if (bridge_job == NULL)
        return NULL;
    bridge_job->job = (struct rway_job){.run = bridge_run, .arm = bridge_arm, .free = bridge_job_free};
    bridge_job->pipeline = pipeline;
    pipeline->bridge = bridge;
    for (uint32_t port = 0; port < RWAY_PORTS_MAX; port++)
        bridge_job->ports |= (uint64_t)(pipeline->outlets[port] != NULL) << port;
    return &bridge_job->job;
}

int rway_bridge_job_add(struct rway_job *job, struct rway_consumer *in, uint32_t port)
{
    struct bridge_job *bridge_job = (struct bridge_job *)job;
    if (bridge_job->inlet_count == INLETS_MAX || port >= RWAY_PORTS_MAX)
        return -1;
    bridge_job->inlets[bridge_job->inlet_count++] = (struct inlet){.in = in, .port = port};
    return 0;
}
