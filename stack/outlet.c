/* See outlet.h. */
#include "outlet.h"

#include <stdlib.h>

static struct rway_outlet *outlet_with_ways(uint32_t way_count)
{
    struct rway_outlet *outlet = calloc(1, sizeof *outlet + way_count * sizeof outlet->ways[0]);
    if (outlet != NULL)
        outlet->way_count = way_count;
    return outlet;
}

struct rway_outlet *rway_outlet_new(struct rway_producer *out)
{
    struct rway_outlet *outlet = outlet_with_ways(1);
    if (outlet != NULL)
        outlet->ways[0].out = out;
    return outlet;
}

struct rway_outlet *rway_outlet_steered_new(struct rway_steering *steering)
{
    uint32_t owned = rway_steering_owned(steering);
    struct rway_outlet *outlet = outlet_with_ways((uint32_t)__builtin_popcount(owned));
    if (outlet == NULL)
        return NULL;
    outlet->steering = steering;
    for (uint32_t at = 0; owned != 0; owned &= owned - 1, at++) {
        uint32_t queue = (uint32_t)__builtin_ctz(owned);
        outlet->way_of[queue] = (uint8_t)at;
        outlet->ways[at].out = rway_steering_producer(steering, queue);
    }
    return outlet;
}

void rway_outlet_free(struct rway_outlet *outlet)
{
    if (outlet == NULL)
        return;
    for (uint32_t k = 0; k < outlet->way_count; k++)
        rway_producer_settle(outlet->ways[k].out);
    free(outlet);
}

static uint32_t drop_cause(const struct rway_producer *out, const struct rway_frame *frame)
{
    int unfit = rway_producer_fits(out, frame->len, frame->pushed);
    if (rway_producer_broken(out))
        return RWAY_DROP_DOWN;
    return unfit ? (uint32_t)unfit - 1 : RWAY_DROP_FULL;
}

struct rway_way *rway_outlet_choose(struct rway_outlet *outlet, struct rway_packet *packet)
{
    if (!outlet->touched)
        rway_steering_follow(outlet->steering);
    outlet->touched = true;
    return &outlet->ways[outlet->way_of[rway_steering_choose(outlet->steering, rway_packet_hash(packet))]];
}

/* Drop a frame that the out-ring did not take, and count it there. */
static void drop_leaving(struct rway_way *way, uint32_t at)
{
    uint32_t behind = --way->count - at;
    rway_producer_drop(way->out, drop_cause(way->out, &way->leaving[at]), 1);
    memmove(&way->leaving[at], &way->leaving[at + 1], behind * sizeof way->leaving[0]);
    memmove(&way->left_as[at], &way->left_as[at + 1], behind * sizeof way->left_as[0]);
}

/* Claim out-slots for what leaves. Frames without room are dropped; a shorter one after them may still find some. */
static void claim_leaving(struct rway_way *way)
{
    uint32_t claimed = 0;
    while (claimed < way->count) {
        claimed += rway_ring_claim(way->out, &way->leaving[claimed], way->count - claimed);
        if (claimed < way->count)
            drop_leaving(way, claimed);
    }
}

void rway_outlet_fill(struct rway_outlet *outlet, const struct rway_consumer *in)
{
    for (uint32_t k = 0; k < outlet->way_count; k++) {
        struct rway_way *way = &outlet->ways[k];
        claim_leaving(way);
        for (uint32_t i = 0; i < way->count; i++)
            rway_packet_fill(way->left_as[i], in, way->out, &way->leaving[i]);
    }
}

/* The loop comes back at once, and with nothing more to publish this settles what was put off. */
void rway_outlet_publish(struct rway_outlet *outlet)
{
    for (uint32_t k = 0; k < outlet->way_count; k++) {
        struct rway_way *way = &outlet->ways[k];
        rway_ring_publish_more(way->out, way->leaving, way->count);
        way->count = 0;
    }
    outlet->touched = false;
}
