/*
 * The machine's own limit: the plainest ring in C, with the same slots and the same bursts, that checks nothing,
 * counts nothing, wakes nobody and trusts its peer. It fetches the first line of each slot of a burst beforehand, as
 * anybody would. A frame longer than a slot goes on in the next ones. Nothing but the benches uses it.
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stdint.h>

enum { BARE_SLOTS = 1024, BARE_STRIDE = 2112, BARE_HEADROOM = 64, BARE_PAYLOAD = 2048, BARE_BURST = 64 };

struct bare_ring {
    _Alignas(128) uint64_t head;
    _Alignas(128) uint64_t tail;
    _Alignas(128) uint32_t lens[BARE_SLOTS];
    _Alignas(128) uint8_t slots[BARE_SLOTS][BARE_STRIDE];
};

static inline uint8_t *bare_payload_at(struct bare_ring *ring, uint64_t at)
{
    return ring->slots[at % BARE_SLOTS] + BARE_HEADROOM;
}

#endif
