/* The consuming half of a ring: peek and release. See ring.c for the whole. */
#include "slot.h"

void rway_consumer_vanished(struct rway_consumer *consumer)
{
    rway_region_break(consumer->ring.region, RWAY_BROKEN_VANISHED);
}

/* Fetch the peer's head. One that went back or past the free slots would make us read what was never published. */
static bool refresh_head(struct rway_consumer *consumer)
{
    /* Acquire: pairs with the release of head in rway_ring_publish. */
    uint64_t peer_x = rway_load_acquire(&consumer->ring.control->head);
    if (peer_x - consumer->peer_head > consumer->tail + consumer->ring.slot_count - consumer->peer_head) {
        rway_region_break(consumer->ring.region, RWAY_BROKEN_HEAD);
        return false;
    }
    consumer->peer_head = peer_x;
    return true;
}

/* The same for reading; how long the frames are is guessed from the one before. */
static void prefetch_for_reading(const struct rway_consumer *consumer, uint64_t at, uint32_t count, uint64_t available)
{
    const struct rway_ring *ring = &consumer->ring;
    for (uint64_t i = 0; i < available && i < 2 * (uint64_t)count; i += RWAY_DESCS_PER_LINE)
        __builtin_prefetch(&ring->descs[(uint32_t)(at + i) & ring->mask]);
    if (available / 2 >= count) {
        at += count;
        available -= count;
    }
    for (uint32_t i = 0; i < count && i < available; i++) {
        const uint8_t *data = rway_payload_at(ring, at + i);
        for (uint32_t line = 0; line < consumer->usual_len; line += RWAY_LINE)
            __builtin_prefetch(data + line);
    }
}

uint32_t rway_ring_peek(struct rway_consumer *consumer, struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring ring = consumer->ring; /* a copy: nothing that is stored below can change it */
    uint64_t cursor = consumer->cursor, taken_bytes = 0;
    uint32_t taken = 0;
    if (!rway_ring_whole(&ring))
        return 0;
    if (cursor == consumer->peer_head && !refresh_head(consumer))
        return 0;
    uint64_t available = consumer->peer_head - cursor;
    prefetch_for_reading(consumer, cursor, count, available);
    for (; taken < count && cursor != consumer->peer_head; taken++) {
        struct rway_desc desc = rway_desc_fetch(&ring, cursor);
        int cause = rway_desc_check(&ring, &desc, cursor, consumer->peer_head - cursor);
        if (__builtin_expect(cause != RWAY_WHOLE, 0)) {
            rway_region_break(ring.region, cause);
            break;
        }
        uint32_t index = (uint32_t)cursor & ring.mask;
        frames[taken] = (struct rway_frame){
            .data = rway_slot(&ring, index) + ring.headroom - desc.pushed,
            .len = desc.len,
            .index = index,
            .slots = desc.slots,
            .pushed = desc.pushed,
            .vlan = desc.vlan,
            .flags = desc.flags,
            .hash = desc.hash,
        };
        cursor += desc.slots;
        taken_bytes += desc.len;
    }
    if (taken != 0)
        consumer->usual_len = frames[taken - 1].len < RWAY_PREFETCH_MAX ? frames[taken - 1].len : RWAY_PREFETCH_MAX;
    consumer->cursor = cursor;
    consumer->taken_frames += taken;
    consumer->taken_bytes += taken_bytes;
    return taken;
}

/* Show the producer what was taken. Returns whether tail moved. */
static bool release(struct rway_consumer *consumer)
{
    struct rway_ring_control *control = consumer->ring.control;
    /* What was taken before the ring broke was delivered, and is to be accounted for. */
    if (rway_read_once(&consumer->ring.region->broken) == RWAY_BROKEN_VANISHED)
        return false;
    consumer->counts.frames += consumer->taken_frames;
    consumer->counts.bytes += consumer->taken_bytes;
    consumer->taken_frames = consumer->taken_bytes = 0;
    bool moved = consumer->cursor != consumer->tail;
    if (moved) {
        consumer->tail = consumer->cursor;
        rway_extra_store(control->replicated, &consumer->replicated, consumer->next_commit);
        rway_commit_store(control->released, &consumer->next_commit, consumer->tail, &consumer->counts,
                          consumer->dropped);
        rway_write_once(&control->consumed.frames, consumer->counts.frames);
        rway_write_once(&control->consumed.bytes, consumer->counts.bytes);
        /* Release: pairs with the acquire of tail in refresh_tail; we have read the slots before it. */
        rway_store_release(&control->tail, consumer->tail);
    }
    if (consumer->dirty)
        rway_consumer_show_counts(consumer);
    return moved;
}

static void ring_producer(struct rway_consumer *consumer)
{
    uint64_t wake = rway_read_once(&consumer->ring.control->wake_producer);
    if (!rway_step_wakes(consumer->looked_at, consumer->tail, wake))
        return;
    consumer->looked_at = consumer->tail;
    rway_bell_ring(&consumer->bell, &consumer->counts, &consumer->dirty);
}

void rway_consumer_settle(struct rway_consumer *consumer)
{
    if (consumer->looked_at == consumer->tail)
        return;
    /* Pairs with the fence in rway_waiter_wait, as in rway_producer_settle. */
    rway_full_fence();
    ring_producer(consumer);
    consumer->looked_at = consumer->tail;
}

void rway_ring_release(struct rway_consumer *consumer)
{
    release(consumer);
    rway_consumer_settle(consumer);
}

void rway_ring_release_more(struct rway_consumer *consumer)
{
    if (release(consumer))
        ring_producer(consumer);
    else
        rway_consumer_settle(consumer);
}

void rway_consumer_put_back(struct rway_consumer *consumer, const struct rway_frame *frames, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        consumer->cursor -= frames[i].slots;
        consumer->taken_bytes -= frames[i].len;
    }
    consumer->taken_frames -= count;
}

void rway_consumer_begin(struct rway_consumer *consumer, const struct rway_frame *frame)
{
    uint32_t before = (frame->index - (uint32_t)consumer->tail) & consumer->ring.mask;
    rway_write_once(&consumer->ring.control->begun, consumer->tail + before + frame->slots);
    rway_keep_order();
}

void rway_consumer_stall(struct rway_consumer *consumer, uint32_t depth)
{
    if (__builtin_expect(consumer->stalled == depth, 1))
        return;
    consumer->stalled = depth;
    rway_write_once(&consumer->ring.control->stalled, depth);
}

void rway_consumer_drop(struct rway_consumer *consumer, uint32_t cause, uint64_t frames)
{
    if (cause < RWAY_DROPS) {
        consumer->counts.drops[cause] += frames;
        consumer->dropped += frames;
        consumer->dirty |= rway_drop_bit(cause);
    }
}

void rway_consumer_replicated(struct rway_consumer *consumer, uint64_t frames)
{
    consumer->replicated.now += frames;
}

void rway_consumer_consumed(struct rway_consumer *consumer, uint64_t frames)
{
    consumer->replicated.now -= frames;
}
