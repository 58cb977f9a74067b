/*
 * The two ends of a link, at full speed: every byte written in place by one, read in place by the other, through the
 * library's public functions with all its checks and counters.
 */
#include "bench.h"

#include "touch.h"

enum { BURST = 64 };

/* A frame's bytes may lie in several slots; the words go on from piece to piece (payloads are multiples of 64). */
BENCH_INLINE void write_frame(struct rway_producer *producer, const struct rway_frame *frame, uint64_t number)
{
    if (__builtin_expect(frame->slots == 1, 1)) {
        touch_write(frame->data, frame->len, number);
        return;
    }
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t count = rway_producer_pieces(producer, frame, pieces);
    for (uint32_t i = 0, at = 0; i < count; at += (uint32_t)pieces[i++].len)
        touch_write(pieces[i].data, pieces[i].len, number + at / 8);
}

BENCH_INLINE uint64_t check_frame(struct rway_consumer *consumer, const struct rway_frame *frame, uint64_t number)
{
    if (__builtin_expect(frame->slots == 1, 1))
        return touch_check(frame->data, frame->len, number);
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t count = rway_consumer_pieces(consumer, frame, pieces);
    uint64_t wrong = 0;
    for (uint32_t i = 0, at = 0; i < count; at += (uint32_t)pieces[i++].len)
        wrong |= touch_check(pieces[i].data, pieces[i].len, number + at / 8);
    return wrong;
}

BENCH_CLONES void bench_link_produce(void *native, struct bench_board *board)
{
    struct rway_producer *producer = native;
    struct rway_frame frames[BURST];
    uint64_t number = 0;
    uint32_t len = 0;
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        if (len != __atomic_load_n(&board->len, __ATOMIC_RELAXED)) {
            len = (uint32_t)__atomic_load_n(&board->len, __ATOMIC_RELAXED);
            for (uint32_t i = 0; i < BURST; i++)
                frames[i] = (struct rway_frame){.len = len};
        }
        uint32_t claimed = rway_ring_claim(producer, frames, BURST);
        for (uint32_t i = 0; i < claimed; i++)
            write_frame(producer, &frames[i], number + i);
        rway_ring_publish_more(producer, frames, claimed);
        number += claimed;
        board_add(board, claimed, (uint64_t)claimed * len, 0);
        if (claimed == 0)
            relax();
    }
}

BENCH_CLONES void bench_link_consume(void *native, struct bench_board *board)
{
    struct rway_consumer *consumer = native;
    struct rway_frame frames[BURST];
    uint64_t number = 0;
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint32_t taken = rway_ring_peek(consumer, frames, BURST);
        uint64_t wrong = 0, bytes = 0;
        for (uint32_t i = 0; i < taken; i++) {
            wrong += check_frame(consumer, &frames[i], number + i) != 0;
            bytes += frames[i].len;
        }
        rway_ring_release_more(consumer);
        number += taken;
        board_add(board, taken, bytes, wrong);
        if (taken == 0)
            relax();
    }
}
