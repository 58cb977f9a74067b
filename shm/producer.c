/* The producing half of a ring: claim and publish. See ring.c for the whole. */
#include "slot.h"

int rway_producer_fits(const struct rway_producer *producer, uint32_t len, uint32_t pushed)
{
    if (len < RWAY_FRAME_MIN)
        return RWAY_DROP_RUNT + 1;
    if (len > producer->ring.frame_max || !rway_pushed_fits(&producer->ring, len, pushed))
        return RWAY_DROP_OVERSIZE + 1;
    return 0;
}

uint32_t rway_producer_slots(const struct rway_producer *producer, uint32_t len, uint32_t pushed)
{
    return rway_slots_for(&producer->ring, len, pushed > len ? len : pushed);
}

/* Fetch the peer's tail. One that went back or ran ahead of our head would let us overwrite or skip slots. */
static bool refresh_tail(struct rway_producer *producer)
{
    /* Acquire: pairs with the release of tail in rway_ring_release; the consumer has done with the slots before it. */
    uint64_t peer_x = rway_load_acquire(&producer->ring.control->tail);
    if (peer_x - producer->peer_tail > producer->head - producer->peer_tail) {
        rway_region_break(producer->ring.region, RWAY_BROKEN_TAIL);
        return false;
    }
    producer->peer_tail = peer_x;
    return true;
}

int rway_producer_broken(const struct rway_producer *producer)
{
    return rway_read_once(&producer->ring.region->broken);
}

void rway_producer_vanished(struct rway_producer *producer)
{
    rway_region_break(producer->ring.region, RWAY_BROKEN_VANISHED);
}

uint32_t rway_producer_room(struct rway_producer *producer)
{
    if (!rway_ring_whole(&producer->ring) || !refresh_tail(producer))
        return 0;
    return producer->ring.slot_count - (uint32_t)(producer->claimed - producer->peer_tail);
}

uint64_t rway_producer_released(const struct rway_producer *producer)
{
    return producer->peer_tail;
}

/* A consumer that lies about it is waited for as long as for a long row of them, which is bounded. */
uint32_t rway_producer_stalled(const struct rway_producer *producer)
{
    uint64_t peer_x = rway_read_once(&producer->ring.control->stalled);
    return peer_x < RWAY_STALL_MAX ? (uint32_t)peer_x : RWAY_STALL_MAX;
}

uint64_t rway_producer_position(const struct rway_producer *producer)
{
    return producer->claimed;
}

/* Room for count slots, as far as the last tail that was seen tells; only then is the consumer's line looked at. */
static uint32_t room_for(struct rway_producer *producer, uint32_t count)
{
    uint32_t room = producer->ring.slot_count - (uint32_t)(producer->claimed - producer->peer_tail);
    if (__builtin_expect(room >= count, 1))
        return room;
    if (!refresh_tail(producer))
        return 0;
    return producer->ring.slot_count - (uint32_t)(producer->claimed - producer->peer_tail);
}

uint32_t rway_producer_fitting(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count)
{
    uint32_t needed = 0, room = producer->ring.slot_count - (uint32_t)(producer->claimed - producer->peer_tail);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t len = frames[i].len;
        if (__builtin_expect(len <= producer->ring.payload, 1))
            needed++;
        else if (rway_producer_fits(producer, len, 0) == 0)
            needed += rway_slots_for(&producer->ring, len, 0);
        if (__builtin_expect(needed <= room, 1))
            continue;
        room = room_for(producer, needed);
        if (!rway_ring_whole(&producer->ring))
            break; /* they need not wait for a room that never comes */
        if (needed > room)
            return i;
    }
    return count;
}

/* Slots of a frame to be claimed; 0 when the link carries no such frame. */
static uint32_t slots_to_claim(const struct rway_producer *producer, const struct rway_frame *frame)
{
    if (rway_producer_fits(producer, frame->len, frame->pushed))
        return 0;
    return rway_slots_for(&producer->ring, frame->len, frame->pushed);
}

/*
 * Bring the lines of a burst here to be written. All of it before the first store: the store of head that went before
 * is still waiting for its line, stores leave a core in order, and behind it there is room for some sixty. Nothing
 * beyond the burst: what comes too early takes the place of what is needed first (docs/adr/0033).
 */
static void prefetch_for_writing(const struct rway_ring *ring, uint64_t at, const struct rway_frame *frames,
                                 uint32_t count, uint32_t room)
{
    for (uint32_t i = 0; i < count && i < room; i++) {
        const uint8_t *data = rway_payload_at(ring, at + i);
        uint32_t len = frames[i].len < RWAY_PREFETCH_MAX ? frames[i].len : RWAY_PREFETCH_MAX;
        for (uint32_t line = 0; line < len; line += RWAY_LINE)
            rway_prefetch_write(data + line);
        if ((at + i) % RWAY_DESCS_PER_LINE == 0)
            rway_prefetch_write(&ring->descs[(uint32_t)(at + i) & ring->mask]);
    }
}

uint32_t rway_ring_claim(struct rway_producer *producer, struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring ring = producer->ring; /* a copy: nothing that is stored below can change it */
    uint64_t at = producer->claimed;
    uint32_t claimed = 0;
    if (!rway_ring_whole(&ring))
        return 0;
    uint32_t room = room_for(producer, count);
    prefetch_for_writing(&ring, at, frames, count, room);
    for (; claimed < count; claimed++) {
        struct rway_frame *frame = &frames[claimed];
        bool plain = frame->pushed == 0 && frame->len <= ring.payload && frame->len >= RWAY_FRAME_MIN &&
                     frame->len <= ring.frame_max;
        uint32_t slots = __builtin_expect(plain, 1) ? 1 : slots_to_claim(producer, frame);
        if (slots == 0)
            break;
        if (__builtin_expect(slots > room, 0)) {
            producer->claimed = at;
            room = room_for(producer, slots);
            if (slots > room)
                break;
        }
        uint32_t index = (uint32_t)at & ring.mask;
        frame->index = index;
        frame->slots = (uint16_t)slots;
        frame->data = ring.slots + (uint64_t)index * ring.stride + ring.headroom - frame->pushed;
        at += slots;
        room -= slots;
    }
    producer->claimed = at;
    return claimed;
}

void rway_ring_trim(struct rway_producer *producer, struct rway_frame *last, uint32_t len)
{
    if (len >= last->len)
        return;
    uint32_t keep = len == 0 ? 0 : rway_producer_slots(producer, len, last->pushed);
    producer->claimed -= last->slots - keep;
    last->slots = (uint16_t)keep;
    last->len = len;
}

static inline void store_desc(const struct rway_ring *ring, uint64_t at, struct rway_desc desc)
{
    union rway_desc_words filled = {.desc = desc};
    uint64_t *shared = (uint64_t *)&ring->descs[(uint32_t)at & ring->mask];
    rway_write_once(&shared[0], filled.words[0]);
    rway_write_once(&shared[1], filled.words[1]);
}

static inline void describe(const struct rway_ring *ring, const struct rway_frame *frame, uint64_t at)
{
    store_desc(ring, at,
               (struct rway_desc){
                   .kind = RWAY_DESC_FRAME,
                   .flags = frame->flags,
                   .slots = frame->slots,
                   .len = frame->len,
                   .vlan = frame->vlan,
                   .pushed = frame->pushed,
                   .hash = frame->hash,
               });
    for (uint32_t i = 1; i < frame->slots; i++)
        store_desc(ring, at + i, (struct rway_desc){.kind = RWAY_DESC_CONTINUATION});
}

/* Describe and show the frames. Returns whether head moved; when to ring is the caller's business. */
static bool publish(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring ring = producer->ring; /* a copy: nothing that is stored below can change it */
    struct rway_ring_control *control = ring.control;
    uint64_t head = producer->head, bytes = 0;
    if (!rway_ring_whole(&ring)) {
        rway_producer_drop(producer, RWAY_DROP_DOWN, count);
        count = 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        describe(&ring, &frames[i], head);
        head += frames[i].slots;
        bytes += frames[i].len;
    }
    producer->claimed = head;
    producer->counts.frames += count;
    producer->counts.bytes += bytes;
    bool moved = head != producer->head;
    if (moved) {
        producer->head = head;
        rway_extra_store(control->originated, &producer->originated, producer->next_commit);
        rway_commit_store(control->published, &producer->next_commit, head, &producer->counts, producer->dropped);
        rway_write_once(&control->produced.frames, producer->counts.frames);
        rway_write_once(&control->produced.bytes, producer->counts.bytes);
        /* Release: pairs with the acquire of head in rway_ring_peek; descriptors and slots are written before it. */
        rway_store_release(&control->head, head);
    }
    if (producer->dirty)
        rway_producer_show_counts(producer);
    return moved;
}

/* Ring the consumer if it waits for a step that it was not yet looked at for. */
static void ring_consumer(struct rway_producer *producer)
{
    uint64_t wake = rway_read_once(&producer->ring.control->wake_consumer);
    if (!rway_step_wakes(producer->looked_at, producer->head, wake))
        return;
    producer->looked_at = producer->head;
    rway_bell_ring(&producer->bell, &producer->counts, &producer->dirty);
}

void rway_producer_settle(struct rway_producer *producer)
{
    if (producer->looked_at == producer->head)
        return;
    /* Pairs with the fence in rway_waiter_wait: either the sleeper sees this head, or we see its wake word. */
    rway_full_fence();
    ring_consumer(producer);
    producer->looked_at = producer->head;
}

void rway_ring_publish(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count)
{
    publish(producer, frames, count);
    rway_producer_settle(producer);
}

void rway_ring_publish_more(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count)
{
    if (publish(producer, frames, count))
        ring_consumer(producer);
    else
        rway_producer_settle(producer);
}

void rway_producer_drop(struct rway_producer *producer, uint32_t cause, uint64_t frames)
{
    if (cause < RWAY_DROPS) {
        producer->counts.drops[cause] += frames;
        producer->dropped += frames;
        producer->dirty |= rway_drop_bit(cause);
    }
}

void rway_producer_originated(struct rway_producer *producer, uint64_t frames)
{
    producer->originated.now += frames;
}
