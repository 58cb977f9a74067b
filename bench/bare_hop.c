/* The hop's limit: its ends and its forwarder over two bare rings, each frame copied once and never looked at. */
#include "bench.h"

#include "bare.h"
#include "hop_load.h"

enum { THERE, BACK, RINGS, COPY_BLOCK = 64 };

_Static_assert((int)HOP_BURST == BARE_BURST && (int)HOP_UNDER_WAY <= BARE_SLOTS, "no ring is ever full");

uint64_t bench_bare_hop_size(void)
{
    return RINGS * sizeof(struct bare_ring);
}

/* Frames to be read now, of a burst, their first lines fetched. */
BENCH_INLINE uint32_t peek_burst(struct bare_ring *ring, uint64_t tail)
{
    uint64_t there = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - tail;
    uint32_t count = there < BARE_BURST ? (uint32_t)there : BARE_BURST;
    for (uint32_t i = 0; i < count; i++)
        __builtin_prefetch(bare_payload_at(ring, tail + i));
    return count;
}

BENCH_INLINE void claim_burst(struct bare_ring *ring, uint64_t head, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        prefetch_write(bare_payload_at(ring, head + i));
}

/* Whole blocks: a slot has room for what lies behind a frame. */
BENCH_INLINE void copy_blocks(uint8_t *to, const uint8_t *from, uint32_t len)
{
    for (uint32_t at = 0; at < len; at += COPY_BLOCK)
        memcpy(to + at, from + at, COPY_BLOCK);
}

BENCH_CLONES void bench_bare_hop_forward(void *rings, struct bench_board *board)
{
    struct bare_ring *in = (struct bare_ring *)rings + THERE, *out = (struct bare_ring *)rings + BACK;
    uint64_t at = 0; /* in both: each frame takes one slot, and all go on */
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint32_t count = peek_burst(in, at);
        uint64_t bytes = 0;
        claim_burst(out, at, count);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t len = in->lens[(at + i) % BARE_SLOTS];
            copy_blocks(bare_payload_at(out, at + i), bare_payload_at(in, at + i), len);
            out->lens[(at + i) % BARE_SLOTS] = len;
            bytes += len;
        }
        at += count;
        __atomic_store_n(&in->tail, at, __ATOMIC_RELEASE);
        __atomic_store_n(&out->head, at, __ATOMIC_RELEASE);
        board_add(board, count, bytes, 0);
        if (count == 0)
            relax();
    }
}

BENCH_INLINE void send_burst(struct bare_ring *out, struct hop_load *load)
{
    uint32_t count = hop_load_room(load);
    claim_burst(out, load->sent, count);
    for (uint32_t i = 0; i < count; i++) {
        out->lens[(load->sent + i) % BARE_SLOTS] = load->len;
        hop_load_build(load, bare_payload_at(out, load->sent + i), i);
    }
    load->sent += count;
    __atomic_store_n(&out->head, load->sent, __ATOMIC_RELEASE);
}

BENCH_INLINE void take_burst(struct bare_ring *in, struct hop_load *load, struct bench_board *board)
{
    uint32_t count = peek_burst(in, load->expected);
    uint64_t bad = 0;
    for (uint32_t i = 0; i < count; i++)
        bad += in->lens[(load->expected + i) % BARE_SLOTS] != load->len ||
               hop_load_compare(load, bare_payload_at(in, load->expected + i), i) != 0;
    load->expected += count;
    __atomic_store_n(&in->tail, load->expected, __ATOMIC_RELEASE);
    board_add(board, count, (uint64_t)count * load->len, bad);
}

BENCH_CLONES void bench_bare_hop_ends(void *rings, struct bench_board *board)
{
    struct bare_ring *out = (struct bare_ring *)rings + THERE, *in = (struct bare_ring *)rings + BACK;
    struct hop_load load = {0};
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        if (hop_load_follow(&load, board))
            send_burst(out, &load);
        take_burst(in, &load, board);
    }
}
