/*
 * A packet: one frame on its way through a stack. A private copy of its headers, what they say, what is left to do to
 * it, and what is to become of it.
 *
 * The bytes judged are the bytes sent: functions see and change the private copy, and it is that copy that goes into
 * the out-slot; the rest, which no function has looked at, follows straight from the in-slot.
 *
 *      room:  ┌─ RWAY_PUSH_MAX ──┬─ at most RWAY_HEADERS_MAX ─┐     in-slot: ┌── skip ──┬── the rest ──┐
 *             └──── pushed ──► bytes ......... private_len ───┘              └──────────┴──────────────┘
 *
 * What leaves is the private bytes, then the rest: len = private_len + in->len - skip, always.
 */
#ifndef RWAY_STACK_PACKET_H
#define RWAY_STACK_PACKET_H

#include <string.h>

#include "stack/stack.h"

enum {
    RWAY_PUSH_MAX = 64,       /* bytes of headers that functions may put in front */
    RWAY_PORTS_MAX = 64,      /* ports of a stack; their numbers are below it */
    RWAY_PORT_FLOOD = 0xffff, /* not one port: all but the one that the packet came in by */
    RWAY_QUEUE_ANY = 0xffff   /* the queue of its flow */
};

/* What is to become of a packet. */
enum rway_verdict {
    RWAY_VERDICT_NEXT = 0,   /* the next function decides; behind the last one, the stack's mode */
    RWAY_VERDICT_DROP = 1,   /* by packet.cause */
    RWAY_VERDICT_OUT = 2,    /* by packet.out_port and packet.out_queue */
    RWAY_VERDICT_KERNEL = 3, /* reserved for the router; until then as a drop */
    RWAY_VERDICT_UNPARSED = 4 /* not to be judged, see packet.malformed; drops if no function lets it pass */
};

struct rway_packet {
    const struct rway_frame *in; /* where it came in; its bytes may still be changed by the peer */
    uint8_t *bytes;              /* the private bytes: from here the frame as it leaves */
    uint32_t private_len;        /* of them */
    uint32_t skip;               /* bytes at the start of the in-frame that they stand for */
    uint32_t len;                /* of the frame as it leaves */
    uint32_t hash;               /* rway_flow_hash, once asked for: rway_packet_hash */
    uint16_t in_port;
    uint16_t peer_port; /* where the stack's mode would have it leave; RWAY_PORT_FLOOD */
    uint16_t out_port;  /* RWAY_VERDICT_OUT */
    uint16_t out_queue; /* likewise; RWAY_QUEUE_ANY */
    uint16_t vlan;      /* the tag (TCI) that stands beside the frame; 0 without one */
    uint8_t tagged;     /* there is one */
    uint8_t verdict;    /* enum rway_verdict */
    uint8_t cause;      /* enum rway_drop */
    uint8_t malformed;  /* enum rway_malformed; unless it is well-formed, nothing is parsed */
    uint8_t hashed;
    struct rway_offload offload;
    struct rway_headers headers; /* offsets from bytes as they were when it came in */
    uint8_t room[RWAY_PUSH_MAX + RWAY_HEADERS_MAX];
};

static inline void rway_packet_drop(struct rway_packet *packet, enum rway_drop cause)
{
    packet->verdict = RWAY_VERDICT_DROP;
    packet->cause = (uint8_t)cause;
}

static inline void rway_packet_send(struct rway_packet *packet, uint32_t port, uint32_t queue)
{
    packet->verdict = RWAY_VERDICT_OUT;
    packet->out_port = (uint16_t)port;
    packet->out_queue = (uint16_t)queue;
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

/* Room for len more bytes at offset at of the private ones, for the caller to fill; NULL when there is none. */
uint8_t *rway_packet_push(struct rway_packet *packet, uint32_t at, uint32_t len);

/* Take len bytes out at offset at, which all must be private. Returns 0, or -1 and nothing is changed. */
int rway_packet_pull(struct rway_packet *packet, uint32_t at, uint32_t len);

/* Copy and parse the headers of a frame that was peeked from in. Sets all but the ports. */
void rway_packet_open(struct rway_packet *packet, const struct rway_consumer *in, const struct rway_frame *frame);

/* Fill a frame of packet->len bytes that was claimed from out. */
void rway_packet_fill(const struct rway_packet *packet, const struct rway_consumer *in,
                      const struct rway_producer *out, struct rway_frame *to);

#endif
