/* What the C files of bench/ share. */
#ifndef BENCH_H
#define BENCH_H

#include "ringway.h"

#include "board.h"

#include "api.h"

#include "race.h"

/* The worker alone writes these, so a load and a store are enough; whoever reads wants whole words. */
static inline void board_add(struct bench_board *board, uint64_t frames, uint64_t bytes, uint64_t bad)
{
    __atomic_store_n(&board->frames, board->frames + frames, __ATOMIC_RELAXED);
    __atomic_store_n(&board->bytes, board->bytes + bytes, __ATOMIC_RELAXED);
    __atomic_store_n(&board->bad, board->bad + bad, __ATOMIC_RELAXED);
    __atomic_store_n(&board->turns, board->turns + 1, __ATOMIC_RELAXED);
}

#endif
