/*
 * A ring, from its two halves: claim and publish (producer.c), peek and release (consumer.c).
 *
 *      producer                                   consumer
 *      claim    reads tail, hands out slots
 *      publish  writes descriptors, head   ──►    peek     reads head, checks descriptors
 *               rings if head passed                       …frames are read in place…
 *               wake_consumer              ◄──    release  writes tail, rings if tail passed wake_producer
 *
 * Forbidden, and what it would cost: a producer touching a slot before the consumer's release (the consumer reads
 * half of each); a consumer trusting a descriptor it has read twice (a peer changes it in between); either side
 * reading back its own counter (a peer could move it). Counters are 64 bits and do not wrap in practice.
 */
#include "ring.h"

static uint32_t pieces_of(const struct rway_ring *ring, const struct rway_frame *frame, struct rway_piece *pieces)
{
    uint32_t left = frame->len;
    uint32_t first = ring->payload + frame->pushed;
    pieces[0] = (struct rway_piece){.data = frame->data, .len = left < first ? left : first};
    left -= (uint32_t)pieces[0].len;
    uint32_t count = 1;
    for (; left != 0; count++) {
        uint32_t here = left < ring->payload ? left : ring->payload;
        pieces[count].data = rway_slot(ring, (frame->index + count) & ring->mask) + ring->headroom;
        pieces[count].len = here;
        left -= here;
    }
    return count;
}

uint32_t rway_producer_pieces(const struct rway_producer *producer, const struct rway_frame *frame,
                              struct rway_piece *pieces)
{
    return pieces_of(&producer->ring, frame, pieces);
}

uint32_t rway_consumer_pieces(const struct rway_consumer *consumer, const struct rway_frame *frame,
                              struct rway_piece *pieces)
{
    return pieces_of(&consumer->ring, frame, pieces);
}

void rway_counts_store(struct rway_counts *shared, const struct rway_counts *counts)
{
    uint64_t *to = (uint64_t *)shared;
    const uint64_t *from = (const uint64_t *)counts;
    /* Behind the head or tail that they belong to: what a kill in between leaves out is made good at attach. */
    rway_keep_order();
    for (size_t i = 0; i < offsetof(struct rway_counts, pad) / sizeof *from; i++)
        rway_write_once(&to[i], from[i]);
}

void rway_counts_store_dirty(struct rway_counts *shared, const struct rway_counts *counts, uint64_t *dirty)
{
    uint64_t *to = (uint64_t *)shared;
    const uint64_t *from = (const uint64_t *)counts;
    rway_keep_order(); /* as above */
    for (uint64_t left = *dirty; left != 0; left &= left - 1) {
        int i = __builtin_ctzll(left);
        rway_write_once(&to[i], from[i]);
    }
    *dirty = 0;
}

void rway_producer_show_counts(struct rway_producer *producer)
{
    /* Before drops of such frames: what is missing then counts as lost, and not as come from nowhere. */
    rway_extra_store(producer->ring.control->originated, &producer->originated, producer->next_commit ^ 1);
    rway_counts_store_dirty(&producer->ring.control->produced, &producer->counts, &producer->dirty);
}

void rway_consumer_show_counts(struct rway_consumer *consumer)
{
    if (consumer->cursor != consumer->tail)
        return;
    rway_counts_store_dirty(&consumer->ring.control->consumed, &consumer->counts, &consumer->dirty);
}
