/*
 * Copies of a few dozen bytes, in place: a call of memcpy costs more than they do, because its indirect jump is not
 * foreseen where the processor may not predict such jumps for us (10 ns a call were seen in a virtual machine).
 */
#ifndef RWAY_STACK_SHORT_COPY_H
#define RWAY_STACK_SHORT_COPY_H

#include <stdint.h>
#include <string.h>

/* Copy exactly len bytes. Blocks may overlap at the end: bytes there are copied twice, and none behind. */
static inline void rway_copy_short(uint8_t *to, const uint8_t *from, uint32_t len)
{
    if (__builtin_expect(len < 16, 0)) {
        while (len-- != 0)
            *to++ = *from++;
        return;
    }
    uint32_t at = 0;
    for (; at + 32 <= len; at += 32) {
        uint8_t block[32];
        memcpy(block, from + at, 32);
        memcpy(to + at, block, 32);
    }
    if (at != len && len >= 32) {
        uint8_t block[32];
        memcpy(block, from + len - 32, 32);
        memcpy(to + len - 32, block, 32);
    } else if (at != len) {
        uint8_t first[16], last[16];
        memcpy(first, from, 16);
        memcpy(last, from + len - 16, 16);
        memcpy(to, first, 16);
        memcpy(to + len - 16, last, 16);
    }
}

#endif
