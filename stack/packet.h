/* What a packet function does with a packet: helpers beside the declarations of stack/function_api.h. */
#ifndef RWAY_STACK_PACKET_H
#define RWAY_STACK_PACKET_H

#include <string.h>

#include "stack/stack.h"

_Static_assert(RWAY_ROOM_SIZE == RWAY_PUSH_MAX + RWAY_HEADERS_MAX, "room for what is pushed and what is copied");

/* No function behind sees it, and it is counted by that cause: RWAY_DROP_POLICY where it was against some rule. */
static inline void rway_packet_drop(struct rway_packet *packet, enum rway_drop cause)
{
    packet->verdict = RWAY_VERDICT_DROP;
    packet->cause = (uint8_t)cause;
}

/* It leaves by that port, past the functions behind; by the queue of its flow. A port that is away drops it as down. */
static inline void rway_packet_send(struct rway_packet *packet, uint32_t port)
{
    packet->verdict = RWAY_VERDICT_OUT;
    packet->out_port = (uint16_t)port;
}

/* The flow hash, computed once. */
static inline uint32_t rway_packet_hash(struct rway_packet *packet)
{
    if (!packet->hashed) {
        packet->hash = rway_flow_hash(&packet->headers);
        packet->hashed = 1;
    }
    return packet->hash;
}

/* Offload data counts from the frame's start: move it by as much as headers in front of it grow or shrink. */
static inline void rway_packet_shift(struct rway_packet *packet, int32_t by)
{
    if (packet->offload.flags & RWAY_EXT_CSUM)
        packet->offload.csum_start = (uint16_t)(packet->offload.csum_start + by);
    if (packet->offload.hdr_len != 0)
        packet->offload.hdr_len = (uint16_t)(packet->offload.hdr_len + by);
}

/* ---- for the pipeline ---- */

/* Copy and parse the headers of a frame that was peeked from in. Sets all but the ports. */
void rway_packet_open(struct rway_packet *packet, const struct rway_consumer *in, const struct rway_frame *frame);

/* Fill a frame of packet->len bytes that was claimed from out. */
void rway_packet_fill(const struct rway_packet *packet, const struct rway_consumer *in, const struct rway_producer *out,
                      struct rway_frame *to);

#endif
