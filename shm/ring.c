/*
 * The two halves of a ring: claim and publish for its producer, peek and release for its consumer.
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

#include <string.h>

_Static_assert(sizeof(struct rway_desc) == 2 * sizeof(uint64_t), "a descriptor is fetched as two words");

/* Slots for a frame of len bytes of which pushed lie in the headroom. */
static inline uint32_t slots_for(const struct rway_ring *ring, uint32_t len, uint32_t pushed)
{
    uint32_t body = len - pushed;
    if (body <= ring->payload)
        return 1;
    return (body + ring->payload - 1) / ring->payload;
}

static inline bool pushed_fits(const struct rway_ring *ring, uint32_t len, uint32_t pushed)
{
    return pushed <= ring->headroom - RWAY_HEADROOM_MIN && pushed <= len;
}

int rway_producer_fits(const struct rway_producer *producer, uint32_t len, uint32_t pushed)
{
    if (len < RWAY_FRAME_MIN)
        return RWAY_DROP_RUNT + 1;
    if (len > producer->ring.frame_max || !pushed_fits(&producer->ring, len, pushed))
        return RWAY_DROP_OVERSIZE + 1;
    return 0;
}

uint32_t rway_producer_slots(const struct rway_producer *producer, uint32_t len, uint32_t pushed)
{
    return slots_for(&producer->ring, len, pushed > len ? len : pushed);
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

static bool has_room(struct rway_producer *producer, uint32_t slots)
{
    uint64_t in_use_after = producer->claimed + slots - producer->peer_tail;
    if (__builtin_expect(in_use_after <= producer->ring.slot_count, 1))
        return true;
    return refresh_tail(producer) && producer->claimed + slots - producer->peer_tail <= producer->ring.slot_count;
}

int rway_producer_broken(const struct rway_producer *producer)
{
    return rway_read_once(&producer->ring.region->broken);
}

void rway_producer_vanished(struct rway_producer *producer)
{
    rway_region_break(producer->ring.region, RWAY_BROKEN_VANISHED);
}

void rway_consumer_vanished(struct rway_consumer *consumer)
{
    rway_region_break(consumer->ring.region, RWAY_BROKEN_VANISHED);
}

uint32_t rway_producer_room(struct rway_producer *producer)
{
    if (!rway_ring_whole(&producer->ring) || !refresh_tail(producer))
        return 0;
    return producer->ring.slot_count - (uint32_t)(producer->claimed - producer->peer_tail);
}

uint64_t rway_producer_position(const struct rway_producer *producer)
{
    return producer->claimed;
}

/* A peer that lies about it has its own frames come out of order, and nothing else. */
uint64_t rway_producer_passed(struct rway_producer *producer)
{
    if (!rway_ring_whole(&producer->ring) || !refresh_tail(producer))
        return producer->claimed;
    /* Acquire: pairs with the release in rway_consumer_pass; what we publish from here on comes after those frames. */
    uint64_t peer_x = rway_load_acquire(&producer->ring.control->passed);
    return (int64_t)(peer_x - producer->peer_tail) > 0 ? producer->peer_tail : peer_x;
}

uint32_t rway_ring_claim(struct rway_producer *producer, struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring *ring = &producer->ring;
    uint32_t claimed = 0;
    if (!rway_ring_whole(ring))
        return 0;
    for (; claimed < count; claimed++) {
        struct rway_frame *frame = &frames[claimed];
        uint32_t slots = 1;
        if (frame->kind == RWAY_DESC_FRAME) {
            if (rway_producer_fits(producer, frame->len, frame->pushed))
                break;
            slots = slots_for(ring, frame->len, frame->pushed);
        } else if (frame->kind != RWAY_DESC_MARK || frame->pushed != 0) {
            break;
        }
        if (!has_room(producer, slots))
            break;
        frame->index = (uint32_t)producer->claimed & ring->mask;
        frame->slots = (uint16_t)slots;
        frame->data = rway_slot(ring, frame->index) + ring->headroom - frame->pushed;
        __builtin_prefetch(frame->data, 1);
        producer->claimed += slots;
    }
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

static void describe(struct rway_producer *producer, const struct rway_frame *frame, uint64_t at)
{
    const struct rway_ring *ring = &producer->ring;
    bool is_frame = frame->kind == RWAY_DESC_FRAME;
    ring->descs[(uint32_t)at & ring->mask] = (struct rway_desc){
        .kind = frame->kind,
        .flags = frame->flags,
        .slots = frame->slots,
        .len = is_frame ? frame->len : 0,
        .vlan = frame->vlan,
        .pushed = frame->pushed,
        .hash = frame->hash,
    };
    for (uint32_t i = 1; i < frame->slots; i++)
        ring->descs[(uint32_t)(at + i) & ring->mask] = (struct rway_desc){.kind = RWAY_DESC_CONTINUATION};
    producer->counts.frames += is_frame;
    producer->counts.bytes += is_frame ? frame->len : 0;
}

void rway_ring_publish(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count)
{
    struct rway_ring_control *control = producer->ring.control;
    uint64_t old_head = producer->head;
    uint64_t head = old_head;
    if (!rway_ring_whole(&producer->ring)) {
        rway_producer_drop(producer, RWAY_DROP_DOWN, count);
        count = 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        describe(producer, &frames[i], head);
        head += frames[i].slots;
    }
    producer->claimed = head;
    if (producer->counts_dirty) {
        rway_counts_store(&control->produced, &producer->counts);
        producer->counts_dirty = false;
    }
    if (head == old_head)
        return;
    producer->head = head;
    rway_write_once(&control->produced.frames, producer->counts.frames);
    rway_write_once(&control->produced.bytes, producer->counts.bytes);
    /* Release: pairs with the acquire of head in rway_ring_peek; descriptors and slots are written before it. */
    rway_store_release(&control->head, head);
    /* Pairs with the fence in rway_waiter_wait: either the sleeper sees this head, or we see its wake word. */
    rway_full_fence();
    if (rway_step_wakes(old_head, head, rway_read_once(&control->wake_consumer)))
        rway_bell_ring(&producer->bell, &producer->counts, &producer->counts_dirty);
}

void rway_producer_drop(struct rway_producer *producer, uint32_t cause, uint64_t frames)
{
    if (cause < RWAY_DROPS) {
        producer->counts.drops[cause] += frames;
        producer->counts_dirty = true;
    }
}

/* A descriptor is loaded once, as two words; a peer that rewrites it later changes nothing here. */
static inline struct rway_desc fetch_desc(const struct rway_ring *ring, uint64_t at)
{
    union {
        uint64_t words[2];
        struct rway_desc desc;
    } fetched;
    const uint64_t *shared = (const uint64_t *)&ring->descs[(uint32_t)at & ring->mask];
    fetched.words[0] = rway_read_once(&shared[0]);
    fetched.words[1] = rway_read_once(&shared[1]);
    return fetched.desc;
}

/* What a bad peer would gain without each check: a read past the slots, a frame of somebody's old bytes, a loop. */
static int check_desc(const struct rway_ring *ring, const struct rway_desc *desc, uint64_t at, uint64_t available)
{
    if (desc->flags & ~RWAY_FLAGS_KNOWN)
        return RWAY_BROKEN_FLAGS;
    if (desc->kind == RWAY_DESC_MARK)
        return desc->slots != 1 ? RWAY_BROKEN_SLOTS : desc->len ? RWAY_BROKEN_LENGTH
                                                   : desc->pushed ? RWAY_BROKEN_PUSHED : RWAY_WHOLE;
    if (desc->kind != RWAY_DESC_FRAME)
        return RWAY_BROKEN_KIND;
    if (desc->len < RWAY_FRAME_MIN || desc->len > ring->frame_max)
        return RWAY_BROKEN_LENGTH;
    if (!pushed_fits(ring, desc->len, desc->pushed))
        return RWAY_BROKEN_PUSHED;
    if (desc->slots != slots_for(ring, desc->len, desc->pushed))
        return RWAY_BROKEN_SLOTS;
    if (desc->slots > available)
        return RWAY_BROKEN_INCOMPLETE;
    for (uint32_t i = 1; i < desc->slots; i++)
        if (fetch_desc(ring, at + i).kind != RWAY_DESC_CONTINUATION)
            return RWAY_BROKEN_KIND;
    return RWAY_WHOLE;
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

uint32_t rway_ring_peek(struct rway_consumer *consumer, struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring *ring = &consumer->ring;
    uint32_t taken = 0;
    if (!rway_ring_whole(ring))
        return 0;
    if (consumer->cursor == consumer->peer_head && !refresh_head(consumer))
        return 0;
    for (; taken < count && consumer->cursor != consumer->peer_head; taken++) {
        struct rway_desc desc = fetch_desc(ring, consumer->cursor);
        int cause = check_desc(ring, &desc, consumer->cursor, consumer->peer_head - consumer->cursor);
        if (__builtin_expect(cause != RWAY_WHOLE, 0)) {
            rway_region_break(ring->region, cause);
            break;
        }
        uint32_t index = (uint32_t)consumer->cursor & ring->mask;
        frames[taken] = (struct rway_frame){
            .data = rway_slot(ring, index) + ring->headroom - desc.pushed,
            .len = desc.len,
            .index = index,
            .slots = desc.slots,
            .pushed = desc.pushed,
            .vlan = desc.vlan,
            .kind = desc.kind,
            .flags = desc.flags,
            .hash = desc.hash,
        };
        __builtin_prefetch(frames[taken].data);
        consumer->cursor += desc.slots;
        consumer->taken_frames += desc.kind == RWAY_DESC_FRAME;
        consumer->taken_bytes += desc.len;
    }
    return taken;
}

void rway_ring_release(struct rway_consumer *consumer)
{
    struct rway_ring_control *control = consumer->ring.control;
    uint64_t old_tail = consumer->tail;
    /* What was taken before the ring broke was delivered, and is to be accounted for. */
    if (rway_read_once(&consumer->ring.region->broken) == RWAY_BROKEN_VANISHED)
        return;
    consumer->counts.frames += consumer->taken_frames;
    consumer->counts.bytes += consumer->taken_bytes;
    consumer->taken_frames = consumer->taken_bytes = 0;
    if (consumer->counts_dirty) {
        rway_counts_store(&control->consumed, &consumer->counts);
        consumer->counts_dirty = false;
    }
    if (consumer->cursor == old_tail)
        return;
    consumer->tail = consumer->cursor;
    rway_write_once(&control->consumed.frames, consumer->counts.frames);
    rway_write_once(&control->consumed.bytes, consumer->counts.bytes);
    /* Release: pairs with the acquire of tail in refresh_tail; we have read the slots before it. */
    rway_store_release(&control->tail, consumer->tail);
    /* Pairs with the fence in rway_waiter_wait, as in rway_ring_publish. */
    rway_full_fence();
    if (rway_step_wakes(old_tail, consumer->tail, rway_read_once(&control->wake_producer)))
        rway_bell_ring(&consumer->bell, &consumer->counts, &consumer->counts_dirty);
}

uint64_t rway_consumer_position(const struct rway_consumer *consumer)
{
    return consumer->cursor;
}

uint32_t rway_consumer_queues(const struct rway_consumer *consumer)
{
    return consumer->ring.region->geometry.queues;
}

void rway_consumer_pass(struct rway_consumer *consumer, uint64_t position)
{
    /* Release: pairs with the acquire in rway_producer_passed. */
    rway_store_release(&consumer->ring.control->passed, position);
}

void rway_consumer_drop(struct rway_consumer *consumer, uint32_t cause, uint64_t frames)
{
    if (cause < RWAY_DROPS) {
        consumer->counts.drops[cause] += frames;
        consumer->counts_dirty = true;
    }
}

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
    for (size_t i = 0; i < sizeof *counts / sizeof *from; i++)
        rway_write_once(&to[i], from[i]);
}
