/* Generator and sink of one hop, on one core: frames into one link, and what comes back out of another, compared. */
#include "bench.h"

#include "hop_load.h"

struct hop {
    struct rway_producer *out;
    struct rway_consumer *in;
    struct bench_board *board;
    struct hop_load load;
    struct rway_frame leaving[HOP_BURST];
    struct rway_frame coming[HOP_BURST];
};

/* Once for a length: a claim leaves what was asked for as it is. */
static void describe_frames(struct hop *hop)
{
    for (uint32_t i = 0; i < HOP_BURST; i++)
        hop->leaving[i] = (struct rway_frame){.len = hop->load.len};
}

BENCH_INLINE void send_burst(struct hop *hop)
{
    uint32_t claimed = rway_ring_claim(hop->out, hop->leaving, hop_load_room(&hop->load));
    for (uint32_t i = 0; i < claimed; i++)
        hop_load_build(&hop->load, hop->leaving[i].data, i);
    rway_ring_publish_more(hop->out, hop->leaving, claimed);
    hop->load.sent += claimed;
}

BENCH_INLINE void take_burst(struct hop *hop)
{
    uint32_t taken = rway_ring_peek(hop->in, hop->coming, HOP_BURST);
    uint64_t bad = 0;
    for (uint32_t i = 0; i < taken; i++)
        bad += hop->coming[i].len != hop->load.len || hop_load_compare(&hop->load, hop->coming[i].data, i) != 0;
    rway_ring_release_more(hop->in);
    hop->load.expected += taken;
    board_add(hop->board, taken, (uint64_t)taken * hop->load.len, bad);
}

BENCH_CLONES void bench_hop(void *out, void *in, struct bench_board *board)
{
    struct hop hop = {.out = out, .in = in, .board = board};
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        if (hop_load_follow(&hop.load, board)) {
            if (hop.leaving[0].len != hop.load.len)
                describe_frames(&hop);
            send_burst(&hop);
        }
        take_burst(&hop);
    }
}
