/*
 * Frames as the benches make and check them: each 8-byte word, the last one cut short, holds the frame's number plus
 * its place. Every byte is written by one process and read and compared by the other.
 */
#ifndef BENCH_TOUCH_H
#define BENCH_TOUCH_H

#include <stdint.h>
#include <string.h>

/* One binary, and the widest vectors that the machine has: as a user would build it for his own. */
#if defined(__x86_64__)
#define BENCH_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BENCH_CLONES
#endif
#define BENCH_INLINE static inline __attribute__((always_inline))

BENCH_INLINE void touch_write(uint8_t *to, uint64_t len, uint64_t number)
{
    uint64_t words = len / 8;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t word = number + i;
        memcpy(to + i * 8, &word, 8);
    }
    if (len % 8 != 0) {
        uint64_t word = number + words;
        memcpy(to + words * 8, &word, len % 8);
    }
}

/* 0 when all bytes are as they were written. */
BENCH_INLINE uint64_t touch_check(const uint8_t *from, uint64_t len, uint64_t number)
{
    uint64_t words = len / 8, wrong = 0;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, from + i * 8, 8);
        wrong |= word ^ (number + i);
    }
    if (len % 8 != 0) {
        uint64_t word = 0, expected = number + words;
        memcpy(&word, from + words * 8, len % 8);
        wrong |= (word ^ expected) & (((uint64_t)1 << (len % 8 * 8)) - 1);
    }
    return wrong;
}

/* For itself alone: see rway_prefetch_write. */
BENCH_INLINE void prefetch_write(const void *line)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

BENCH_INLINE void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

#endif
