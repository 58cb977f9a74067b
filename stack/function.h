/*
 * What a C file includes that is a packet function: packets with their helpers, and the entry that it exports. A loaded
 * function's shared object defines
 *
 *      const struct rway_function rway_function_entry = {.version = RWAY_FUNCTION_VERSION, ..., .burst = ...};
 */
#ifndef RWAY_STACK_FUNCTION_H
#define RWAY_STACK_FUNCTION_H

#include "stack/packet.h"

/* Only the loop's thread writes a counter; readers want whole words. */
static inline void rway_counter_add(uint64_t *counter, uint64_t more)
{
    rway_write_once(counter, *counter + more);
}

/* Found by the loader; const and exported, whatever the compiler's flags say of other symbols. */
extern __attribute__((visibility("default"))) const struct rway_function rway_function_entry;

#endif
