/* The two ends of a bare ring: the same work on frames as link.c does, and as little as possible besides. */
#include "bench.h"

#include "bare.h"
#include "touch.h"

uint64_t bench_bare_size(void)
{
    return sizeof(struct bare_ring);
}

BENCH_CLONES void bench_bare_produce(void *memory, struct bench_board *board)
{
    struct bare_ring *ring = memory;
    uint64_t head = 0, tail = 0;
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint32_t len = (uint32_t)__atomic_load_n(&board->len, __ATOMIC_RELAXED);
        uint64_t room = BARE_SLOTS - (head - tail);
        if (room < BARE_BURST) {
            tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
            room = BARE_SLOTS - (head - tail);
        }
        uint32_t count = room < BARE_BURST ? (uint32_t)room : BARE_BURST;
        for (uint32_t i = 0; i < count; i++)
            prefetch_write(ring->slots[(head + i) % BARE_SLOTS] + BARE_HEADROOM);
        for (uint32_t i = 0; i < count; i++) {
            ring->lens[(head + i) % BARE_SLOTS] = len;
            touch_write(ring->slots[(head + i) % BARE_SLOTS] + BARE_HEADROOM, len, head + i);
        }
        head += count;
        __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
        board_add(board, count, (uint64_t)count * len, 0);
        if (count == 0)
            relax();
    }
}

BENCH_CLONES void bench_bare_consume(void *memory, struct bench_board *board)
{
    struct bare_ring *ring = memory;
    uint64_t tail = 0;
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint64_t there = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - tail;
        uint32_t count = there < BARE_BURST ? (uint32_t)there : BARE_BURST;
        uint64_t wrong = 0, bytes = 0;
        for (uint32_t i = 0; i < count; i++)
            __builtin_prefetch(ring->slots[(tail + i) % BARE_SLOTS] + BARE_HEADROOM);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t len = ring->lens[(tail + i) % BARE_SLOTS];
            wrong += touch_check(ring->slots[(tail + i) % BARE_SLOTS] + BARE_HEADROOM, len, tail + i) != 0;
            bytes += len;
        }
        tail += count;
        __atomic_store_n(&ring->tail, tail, __ATOMIC_RELEASE);
        board_add(board, count, bytes, wrong);
        if (count == 0)
            relax();
    }
}
