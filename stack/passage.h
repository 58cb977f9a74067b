/*
 * A frame on its way through a forwarder: the private copy of its headers, and what they say.
 *
 * The bytes judged are the bytes sent: the headers are copied into private memory, judged there, and it is that copy
 * that goes into the out-slot; the rest, which no function has looked at, follows straight from the in-slot.
 */
#ifndef RWAY_STACK_PASSAGE_H
#define RWAY_STACK_PASSAGE_H

#include "stack.h"

struct rway_passage {
    const struct rway_frame *in;
    struct rway_offload offload;
    struct rway_headers parsed;
    uint32_t judged; /* bytes in headers */
    int malformed;   /* enum rway_malformed; unless it is well-formed, nothing is parsed */
    int stopped;     /* enum rway_drop, or RWAY_PASSES */
    uint8_t headers[RWAY_HEADERS_MAX];
};

/* Copy and parse the headers of a frame that was peeked from in. Sets all of passage. */
void rway_passage_open(struct rway_passage *passage, const struct rway_consumer *in, const struct rway_frame *frame);

/* Fill a frame that was claimed from out, of the same length. */
void rway_passage_fill(const struct rway_passage *passage, const struct rway_consumer *in,
                       const struct rway_producer *out, struct rway_frame *to);

#endif
