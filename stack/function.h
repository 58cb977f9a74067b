/*
 * A packet function: a step of a stack. It gets a burst of packets, and changes, drops or directs them.
 *
 * The entry structure is versioned; each loop has a state of its own, which start makes and stop frees. All but message
 * is called by the loop's thread, or while that does not run. Counters are the function's own, by name: it adds to the
 * array that start was given, with rway_counter_add, and `ringway show` has their sum over all loops.
 *
 * A function must not keep packets, nor read beyond packet->bytes + packet->private_len: what follows is shared memory
 * that a peer may change. A crash takes down the agent that runs the function, and nothing else.
 */
#ifndef RWAY_STACK_FUNCTION_H
#define RWAY_STACK_FUNCTION_H

#include "stack/packet.h"

enum { RWAY_FUNCTION_VERSION = 1, RWAY_FUNCTIONS_MAX = 16, RWAY_FUNCTION_COUNTERS_MAX = 64 };

enum rway_function_flag {
    RWAY_FUNCTION_UNPARSED = 1 /* it decides over packets that cannot be judged, too: packet->malformed */
};

enum rway_option_type { RWAY_OPTION_NUMBER = 0, RWAY_OPTION_BOOLEAN = 1, RWAY_OPTION_TEXT = 2 };

/* A key that the function takes in the fabric file, and what it may be. */
struct rway_option {
    const char *name;
    uint32_t type; /* enum rway_option_type */
    int64_t least; /* of a number; of a text, bytes */
    int64_t most;
    int64_t usual; /* when the fabric file does not say; of a text, none */
};

union rway_option_value {
    int64_t number; /* of a boolean, 0 or 1 */
    const char *text;
};

/* What start is given; valid until stop. */
struct rway_function_start {
    const union rway_option_value *options; /* in the order of the entry's table */
    uint64_t *counters;                     /* likewise; all 0 */
    uint32_t ports;                         /* of the stack: their numbers are below it */
    void *owner;                            /* of a built-in function: what its loops share */
};

struct rway_function {
    uint32_t version; /* RWAY_FUNCTION_VERSION */
    uint32_t flags;   /* enum rway_function_flag */
    const char *name;
    const struct rway_option *options;
    uint32_t option_count;
    uint32_t counter_count;
    const char *const *counters;
    /* The state for one loop; NULL is a failure. A function without start has none: its state is NULL. */
    void *(*start)(const struct rway_function_start *start);
    void (*stop)(void *state);
    /* At the top of each turn of the loop; now_ns is a clock that goes on, as of the last timer tick. May be NULL. */
    void (*turn)(void *state, uint64_t now_ns);
    /* Before the loop sleeps or ends: hold nothing that others wait for. May be NULL. */
    void (*rest)(void *state);
    /* Something told from outside while the loop runs, by another thread; 0 or -1. May be NULL. */
    int (*message)(void *state, const void *bytes, uint32_t len);
    /* Decide over packets, in order: packets[i]->verdict is NEXT, or UNPARSED by the flag above. */
    void (*burst)(void *state, struct rway_packet *const *packets, uint32_t count);
};

/* A loaded function's shared object exports this. */
#define RWAY_FUNCTION_ENTRY "rway_function_entry"

/* The loop's thread alone writes a counter; who reads it wants whole words. */
static inline void rway_counter_add(uint64_t *counter, uint64_t more)
{
    rway_write_once(counter, *counter + more);
}

/* The filter as a function, or, where it remembers connections, connection tracking; the filter is its owner. */
const struct rway_function *rway_filter_function(struct rway_filter *filter);

#endif
