/*
 * A port as one loop sends to it: one out-queue, or several that steering chooses among by flow. Each out-queue has its
 * part of a burst, in the order of the whole.
 */
#ifndef RWAY_STACK_OUTLET_H
#define RWAY_STACK_OUTLET_H

#include "stack/packet.h"

/* What leaves by one out-queue in this burst. */
struct rway_way {
    struct rway_producer *out;
    uint32_t count;
    struct rway_frame leaving[RWAY_BURST];
    struct rway_packet *left_as[RWAY_BURST]; /* of the same index in leaving */
};

struct rway_outlet {
    struct rway_steering *steering;  /* NULL when there is one out-queue */
    uint8_t way_of[RWAY_QUEUES_MAX]; /* by the steering's queue */
    bool touched;                    /* by this burst, over the steering */
    uint32_t way_count;
    struct rway_way ways[];
};

/* One out-queue, or all that the steering owns, which stays the caller's. NULL without memory. */
struct rway_outlet *rway_outlet_new(struct rway_producer *out);
struct rway_outlet *rway_outlet_steered_new(struct rway_steering *steering);

/* Settles what was put off. */
void rway_outlet_free(struct rway_outlet *outlet);

/* Which way a packet leaves over a steering, by its flow. */
struct rway_way *rway_outlet_choose(struct rway_outlet *outlet, struct rway_packet *packet);

/* Add a packet to the burst: RWAY_BURST of them at most between two publishes. */
static inline void rway_outlet_add(struct rway_outlet *outlet, struct rway_packet *packet)
{
    struct rway_way *way = outlet->ways;
    uint8_t flags = packet->tagged ? RWAY_FLAG_VLAN : 0;
    if (__builtin_expect(outlet->steering != NULL, 0)) {
        way = rway_outlet_choose(outlet, packet);
        flags |= RWAY_FLAG_HASH;
    }
    /* A good checksum, a flow hash: the peer's words, which the next VM is not to take. */
    struct rway_frame *frame = &way->leaving[way->count];
    frame->flags = flags;
    frame->len = packet->len;
    frame->pushed = 0;
    frame->vlan = packet->vlan;
    frame->hash = packet->hash;
    way->left_as[way->count++] = packet;
}

/* Claim slots for the burst and copy it into them, while the in-slots are still held; what finds no room is dropped. */
void rway_outlet_fill(struct rway_outlet *outlet, const struct rway_consumer *in);

/* After the input is released. Call it in each turn, with nothing added too: that settles what was put off. */
void rway_outlet_publish(struct rway_outlet *outlet);

#endif
