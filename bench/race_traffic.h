/*
 * What all four ends of `bench race` share: a datagram that says which one it is, and the books of the end that takes
 * it. Whatever carried it, it is made and judged by these same lines.
 */
#ifndef RWAY_BENCH_RACE_TRAFFIC_H
#define RWAY_BENCH_RACE_TRAFFIC_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
    RACE_BURST = 64,         /* frames a claim, messages a system call */
    RACE_PAYLOAD_MIN = 18,   /* bytes: with Ethernet, IPv4 and UDP in front and its checksum behind, a frame of 64 */
    RACE_PAYLOAD_MAX = 1472, /* bytes: what an IPv4 packet of 1500 leaves */
    RACE_WINDOW = 65536      /* datagrams: how far back a late one is told from one that comes twice */
};

static inline void race_write(uint64_t *shared, uint64_t value)
{
    __atomic_store_n(shared, value, __ATOMIC_RELAXED);
}

/* The word at place i of datagram number: one that any other number or place gets wrong. A step of splitmix64. */
static inline uint64_t race_word(uint64_t number, uint32_t i)
{
    uint64_t word = number + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    return word ^ (word >> 27);
}

/* Fill a payload of len bytes, at least RACE_PAYLOAD_MIN: the number, then words that follow from it. */
static inline void race_payload_fill(uint8_t *payload, uint32_t len, uint64_t number)
{
    memcpy(payload, &number, 8);
    uint32_t at = 8;
    for (; at + 8 <= len; at += 8) {
        uint64_t word = race_word(number, at);
        memcpy(payload + at, &word, 8);
    }
    uint64_t word = race_word(number, at);
    memcpy(payload + at, &word, len - at);
}

/* Is every byte what race_payload_fill wrote? */
static inline bool race_payload_whole(const uint8_t *payload, uint32_t len, uint64_t *number)
{
    uint64_t found, wrong = 0, tail = 0;
    memcpy(number, payload, 8);
    uint32_t at = 8;
    for (; at + 8 <= len; at += 8) {
        memcpy(&found, payload + at, 8);
        wrong |= found ^ race_word(*number, at);
    }
    uint64_t word = race_word(*number, at), expected = 0;
    memcpy(&tail, payload + at, len - at);
    memcpy(&expected, &word, len - at);
    return (wrong | (tail ^ expected)) == 0;
}

/* The taking end's private state. */
struct race_sink {
    struct race_books books;
    uint64_t next;                   /* the number that comes if none is lost */
    uint64_t seen[RACE_WINDOW / 64]; /* bit per number in [next - RACE_WINDOW, next) */
};

static inline uint64_t race_bit(uint64_t number)
{
    return UINT64_C(1) << (number % 64);
}

static inline uint64_t *race_seen(struct race_sink *sink, uint64_t number)
{
    return &sink->seen[number % RACE_WINDOW / 64];
}

/* Numbers from next up to number were passed over. Further ahead than a window is noise, or a sink that came late. */
static inline void race_pass_over(struct race_sink *sink, uint64_t number)
{
    uint64_t gap = number - sink->next;
    sink->books.lost += gap;
    for (uint64_t i = 0; i < gap && i < RACE_WINDOW; i++)
        *race_seen(sink, sink->next + i) &= ~race_bit(sink->next + i);
}

/* Book a payload that came. */
static inline void race_take(struct race_sink *sink, const uint8_t *payload, uint32_t len)
{
    uint64_t number;
    if (len < RACE_PAYLOAD_MIN || !race_payload_whole(payload, len, &number)) {
        sink->books.damaged++;
        return;
    }
    if (number >= sink->next) {
        race_pass_over(sink, number);
        sink->next = number + 1;
    } else if (sink->next - number > RACE_WINDOW || *race_seen(sink, number) & race_bit(number)) {
        sink->books.duplicated++;
        return;
    } else {
        sink->books.reordered++;
        sink->books.lost--;
    }
    *race_seen(sink, number) |= race_bit(number);
    sink->books.delivered++;
    sink->books.bytes += len;
}

/* Let the bench see the counts; once a burst. */
static inline void race_publish(const struct race_sink *sink, struct race_books *shared)
{
    race_write(&shared->lost, sink->books.lost);
    race_write(&shared->reordered, sink->books.reordered);
    race_write(&shared->duplicated, sink->books.duplicated);
    race_write(&shared->damaged, sink->books.damaged);
    race_write(&shared->bytes, sink->books.bytes);
    race_write(&shared->delivered, sink->books.delivered);
}

#endif
