/* The two ends of a bare ring: the same work on frames as link.c does, and as little as possible besides. */
#include "bench.h"

#include "bare.h"
#include "touch.h"

uint64_t bench_bare_size(void)
{
    return sizeof(struct bare_ring);
}

static inline uint32_t slots_for(uint32_t len)
{
    return (len + BARE_PAYLOAD - 1) / BARE_PAYLOAD;
}

BENCH_INLINE void write_frame(struct bare_ring *ring, uint64_t at, uint32_t len, uint64_t number)
{
    for (uint32_t done = 0; done < len; done += BARE_PAYLOAD, at++) {
        uint32_t here = len - done < BARE_PAYLOAD ? len - done : BARE_PAYLOAD;
        touch_write(bare_payload_at(ring, at), here, number + done / 8);
    }
}

BENCH_INLINE uint64_t check_frame(struct bare_ring *ring, uint64_t at, uint32_t len, uint64_t number)
{
    uint64_t wrong = 0;
    for (uint32_t done = 0; done < len; done += BARE_PAYLOAD, at++) {
        uint32_t here = len - done < BARE_PAYLOAD ? len - done : BARE_PAYLOAD;
        wrong |= touch_check(bare_payload_at(ring, at), here, number + done / 8);
    }
    return wrong;
}

BENCH_CLONES void bench_bare_produce(void *memory, struct bench_board *board)
{
    struct bare_ring *ring = memory;
    uint64_t head = 0, tail = 0, number = 0;
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint32_t len = (uint32_t)__atomic_load_n(&board->len, __ATOMIC_RELAXED);
        uint32_t slots = slots_for(len);
        if (BARE_SLOTS - (head - tail) < BARE_BURST * slots)
            tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
        uint32_t room = (uint32_t)(BARE_SLOTS - (head - tail)) / slots;
        uint32_t count = room < BARE_BURST ? room : BARE_BURST;
        for (uint32_t i = 0; i < count * slots; i++)
            prefetch_write(bare_payload_at(ring, head + i));
        for (uint32_t i = 0; i < count; i++, head += slots) {
            ring->lens[head % BARE_SLOTS] = len;
            write_frame(ring, head, len, number + i);
        }
        number += count;
        __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
        board_add(board, count, (uint64_t)count * len, 0);
        if (count == 0)
            relax();
    }
}

BENCH_CLONES void bench_bare_consume(void *memory, struct bench_board *board)
{
    struct bare_ring *ring = memory;
    uint64_t tail = 0, number = 0;
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint64_t there = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - tail;
        uint64_t wrong = 0, bytes = 0;
        uint32_t count = 0;
        for (uint32_t i = 0; i < there && i < BARE_BURST; i++)
            __builtin_prefetch(bare_payload_at(ring, tail + i));
        for (uint64_t end = tail + there; tail != end && count < BARE_BURST; count++) {
            uint32_t len = ring->lens[tail % BARE_SLOTS];
            wrong += check_frame(ring, tail, len, number + count) != 0;
            bytes += len;
            tail += slots_for(len);
        }
        number += count;
        __atomic_store_n(&ring->tail, tail, __ATOMIC_RELEASE);
        board_add(board, count, bytes, wrong);
        if (count == 0)
            relax();
    }
}
