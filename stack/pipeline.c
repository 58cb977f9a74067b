/* See pipeline.h. */
#define _GNU_SOURCE
#include "pipeline.h"
#include "bridge.h"

#include <stdlib.h>
#include <time.h>

/* Of the last timer tick: cheap enough for each turn. */
static uint64_t coarse_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void pipeline_turn(struct rway_hook *hook)
{
    struct rway_pipeline *pipeline = (struct rway_pipeline *)hook;
    pipeline->now_ns = coarse_ns();
    for (uint32_t i = 0; i < pipeline->step_count; i++)
        if (pipeline->steps[i].function->turn != NULL)
            pipeline->steps[i].function->turn(pipeline->steps[i].state, pipeline->now_ns);
    if (pipeline->bridge != NULL)
        rway_bridge_turn(pipeline->bridge, pipeline->now_ns);
}

static void pipeline_rest(struct rway_hook *hook)
{
    struct rway_pipeline *pipeline = (struct rway_pipeline *)hook;
    for (uint32_t i = 0; i < pipeline->step_count; i++)
        if (pipeline->steps[i].function->rest != NULL)
            pipeline->steps[i].function->rest(pipeline->steps[i].state);
}

static void step_free(struct rway_step *step)
{
    if (step->function->stop != NULL)
        step->function->stop(step->state);
}

static void pipeline_free(struct rway_hook *hook)
{
    struct rway_pipeline *pipeline = (struct rway_pipeline *)hook;
    while (pipeline->step_count != 0)
        step_free(&pipeline->steps[--pipeline->step_count]);
    for (uint32_t port = 0; port < RWAY_PORTS_MAX; port++)
        rway_outlet_free(pipeline->outlets[port]);
    free(pipeline);
}

struct rway_pipeline *rway_pipeline_new(void)
{
    struct rway_pipeline *pipeline = calloc(1, sizeof *pipeline);
    if (pipeline != NULL)
        pipeline->hook = (struct rway_hook){.turn = pipeline_turn, .rest = pipeline_rest, .free = pipeline_free};
    return pipeline;
}

struct rway_hook *rway_pipeline_hook(struct rway_pipeline *pipeline)
{
    return &pipeline->hook;
}

static int step_add(struct rway_pipeline *pipeline, const struct rway_function *function,
                    const struct rway_function_start *start)
{
    struct rway_step step = {.function = function};
    if (pipeline->step_count == RWAY_FUNCTIONS_MAX)
        return -1;
    if (function->start != NULL && (step.state = function->start(start)) == NULL)
        return -1;
    pipeline->steps[pipeline->step_count++] = step;
    return 0;
}

int rway_pipeline_add(struct rway_pipeline *pipeline, const struct rway_function *function,
                      const union rway_option_value *options, uint64_t *counters, const char *const *ports,
                      uint32_t port_count)
{
    pipeline->runs_others = true;
    return step_add(pipeline, function,
                    &(struct rway_function_start){
                        .options = options, .counters = counters, .ports = ports, .port_count = port_count});
}

int rway_pipeline_filter(struct rway_pipeline *pipeline, struct rway_filter *filter)
{
    return step_add(pipeline, rway_filter_function(filter), &(struct rway_function_start){.owner = filter});
}

static int outlet_set(struct rway_pipeline *pipeline, uint32_t port, struct rway_outlet *outlet)
{
    if (outlet == NULL || port >= RWAY_PORTS_MAX || pipeline->outlets[port] != NULL) {
        rway_outlet_free(outlet);
        return -1;
    }
    pipeline->outlets[port] = outlet;
    return 0;
}

int rway_pipeline_out(struct rway_pipeline *pipeline, uint32_t port, struct rway_producer *out)
{
    return outlet_set(pipeline, port, rway_outlet_new(out));
}

int rway_pipeline_out_steered(struct rway_pipeline *pipeline, uint32_t port, struct rway_steering *steering)
{
    return outlet_set(pipeline, port, rway_outlet_steered_new(steering));
}

void rway_burst_open(struct rway_burst *burst, struct rway_consumer *in, uint32_t taken, uint32_t in_port,
                     uint32_t peer_port)
{
    for (uint32_t i = 0; i < taken; i++) {
        struct rway_packet *packet = &burst->packets[i];
        packet->in_port = (uint16_t)in_port;
        packet->peer_port = (uint16_t)peer_port;
        rway_packet_open(packet, in, &burst->taken[i]);
    }
    burst->count = taken;
}

/* Is it for a function with these flags to decide? */
static bool is_open(const struct rway_packet *packet, uint32_t flags)
{
    if (__builtin_expect(packet->malformed != RWAY_WELL_FORMED, 0) && !(flags & RWAY_FUNCTION_UNPARSED))
        return false;
    return packet->verdict == RWAY_VERDICT_NEXT || packet->verdict == RWAY_VERDICT_UNPARSED;
}

void rway_pipeline_run(struct rway_pipeline *pipeline, struct rway_burst *burst)
{
    struct rway_packet *packets[RWAY_BURST];
    for (uint32_t i = 0; i < pipeline->step_count; i++) {
        const struct rway_step *step = &pipeline->steps[i];
        uint32_t count = 0;
        for (uint32_t k = 0; k < burst->count; k++)
            if (is_open(&burst->packets[k], step->function->flags))
                packets[count++] = &burst->packets[k];
        if (count != 0)
            step->function->burst(step->state, packets, count);
    }
}

/* Where it leaves; RWAY_PORTS_MAX: nowhere, and packet->cause says why. */
static uint32_t port_of(const struct rway_pipeline *pipeline, struct rway_packet *packet)
{
    uint32_t port = packet->peer_port;
    if (packet->verdict == RWAY_VERDICT_OUT)
        port = packet->out_port;
    else if (packet->verdict == RWAY_VERDICT_UNPARSED)
        rway_packet_drop(packet, RWAY_DROP_MALFORMED);
    if (packet->verdict == RWAY_VERDICT_DROP) {
        if (packet->cause >= RWAY_DROPS) /* counted under no cause it would be in nobody's books */
            packet->cause = RWAY_DROP_POLICY;
        return RWAY_PORTS_MAX;
    }
    if (port < RWAY_PORTS_MAX && pipeline->outlets[port] != NULL)
        return port;
    rway_packet_drop(packet, RWAY_DROP_DOWN);
    return RWAY_PORTS_MAX;
}

void rway_pipeline_direct(struct rway_pipeline *pipeline, struct rway_packet *packet, struct rway_consumer *in)
{
    uint32_t port = packet->peer_port;
    bool plain = packet->verdict == RWAY_VERDICT_NEXT && port < RWAY_PORTS_MAX && pipeline->outlets[port] != NULL;
    if (__builtin_expect(!plain, 0))
        port = port_of(pipeline, packet);
    if (__builtin_expect(port == RWAY_PORTS_MAX, 0)) {
        rway_consumer_drop(in, packet->cause, 1);
        return;
    }
    rway_outlet_add(pipeline->outlets[port], packet);
    pipeline->touched |= (uint64_t)1 << port;
}

void rway_pipeline_emit(struct rway_pipeline *pipeline, struct rway_consumer *in, uint64_t others)
{
    for (uint64_t left = pipeline->touched; left != 0; left &= left - 1)
        rway_outlet_fill(pipeline->outlets[__builtin_ctzll(left)], in);
    rway_ring_release_more(in);
    for (uint64_t left = pipeline->touched | others; left != 0; left &= left - 1)
        rway_outlet_publish(pipeline->outlets[__builtin_ctzll(left)]);
    pipeline->touched = 0;
}
