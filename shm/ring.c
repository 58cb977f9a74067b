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

_Static_assert(sizeof(struct rway_desc) == 2 * sizeof(uint64_t), "a descriptor is two words");

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

/* Slots of a frame to be claimed; 0 when the link carries no such frame. */
static uint32_t slots_to_claim(const struct rway_producer *producer, const struct rway_frame *frame)
{
    if (frame->kind == RWAY_DESC_MARK)
        return frame->pushed == 0;
    if (frame->kind != RWAY_DESC_FRAME || rway_producer_fits(producer, frame->len, frame->pushed))
        return 0;
    return slots_for(&producer->ring, frame->len, frame->pushed);
}

enum {
    DESCS_PER_LINE = RWAY_LINE / sizeof(struct rway_desc),
    PREFETCH_MAX = 256, /* bytes of a frame; what lies behind, the processor's own prefetcher finds */
    AHEAD = 16          /* slots beyond what is claimed, see below */
};

static inline const uint8_t *payload_at(const struct rway_ring *ring, uint64_t at)
{
    return rway_slot(ring, (uint32_t)at & ring->mask) + ring->headroom;
}

/*
 * Bring the lines of a burst here to be written, from some slots ahead on if those are free already, so that the first
 * of the next burst come while this one is filled; a whole burst ahead, the other core's prefetcher takes some back
 * before they are written. All of it before the first store: the store of head that went before is still waiting for
 * its line, stores leave a core in order, and behind it there is room for some sixty.
 */
static void prefetch_for_writing(const struct rway_ring *ring, uint64_t at, const struct rway_frame *frames,
                                 uint32_t count, uint32_t room)
{
    if (room > count + AHEAD) {
        at += AHEAD;
        room -= AHEAD;
    }
    for (uint32_t i = 0; i < count && i < room; i++) {
        const uint8_t *data = payload_at(ring, at + i);
        uint32_t len = frames[i].len < PREFETCH_MAX ? frames[i].len : PREFETCH_MAX;
        for (uint32_t line = 0; line < len; line += RWAY_LINE)
            rway_prefetch_write(data + line);
        if ((at + i) % DESCS_PER_LINE == 0)
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
        bool plain = frame->kind == RWAY_DESC_FRAME && frame->pushed == 0 && frame->len <= ring.payload &&
                     frame->len >= RWAY_FRAME_MIN && frame->len <= ring.frame_max;
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

/* A descriptor is written and read as two words. */
union desc_words {
    uint64_t words[2];
    struct rway_desc desc;
};

static inline void store_desc(const struct rway_ring *ring, uint64_t at, struct rway_desc desc)
{
    union desc_words filled = {.desc = desc};
    uint64_t *shared = (uint64_t *)&ring->descs[(uint32_t)at & ring->mask];
    rway_write_once(&shared[0], filled.words[0]);
    rway_write_once(&shared[1], filled.words[1]);
}

static inline void describe(const struct rway_ring *ring, const struct rway_frame *frame, uint64_t at)
{
    store_desc(ring, at,
               (struct rway_desc){
                   .kind = frame->kind,
                   .flags = frame->flags,
                   .slots = frame->slots,
                   .len = frame->kind == RWAY_DESC_FRAME ? frame->len : 0,
                   .vlan = frame->vlan,
                   .pushed = frame->pushed,
                   .hash = frame->hash,
               });
    for (uint32_t i = 1; i < frame->slots; i++)
        store_desc(ring, at + i, (struct rway_desc){.kind = RWAY_DESC_CONTINUATION});
}

/* Describe and show the frames. Returns whether head moved; who rings, and when, is the caller's business. */
static bool publish(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring ring = producer->ring; /* a copy: nothing that is stored below can change it */
    struct rway_ring_control *control = ring.control;
    uint64_t head = producer->head, sent = 0, bytes = 0;
    if (!rway_ring_whole(&ring)) {
        rway_producer_drop(producer, RWAY_DROP_DOWN, count);
        count = 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        describe(&ring, &frames[i], head);
        head += frames[i].slots;
        sent += frames[i].kind == RWAY_DESC_FRAME;
        bytes += frames[i].kind == RWAY_DESC_FRAME ? frames[i].len : 0;
    }
    producer->claimed = head;
    producer->counts.frames += sent;
    producer->counts.bytes += bytes;
    if (producer->counts_dirty) {
        rway_counts_store(&control->produced, &producer->counts);
        producer->counts_dirty = false;
    }
    if (head == producer->head)
        return false;
    producer->head = head;
    rway_write_once(&control->produced.frames, producer->counts.frames);
    rway_write_once(&control->produced.bytes, producer->counts.bytes);
    /* Release: pairs with the acquire of head in rway_ring_peek; descriptors and slots are written before it. */
    rway_store_release(&control->head, head);
    return true;
}

/* Ring the consumer if it waits for a step that it was not yet looked at for. */
static void ring_consumer(struct rway_producer *producer)
{
    uint64_t wake = rway_read_once(&producer->ring.control->wake_consumer);
    if (!rway_step_wakes(producer->looked_at, producer->head, wake))
        return;
    producer->looked_at = producer->head;
    rway_bell_ring(&producer->bell, &producer->counts, &producer->counts_dirty);
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
        producer->counts_dirty = true;
    }
}

/* A descriptor is loaded once; a peer that rewrites it later changes nothing here. */
static inline struct rway_desc fetch_desc(const struct rway_ring *ring, uint64_t at)
{
    union desc_words fetched;
    const uint64_t *shared = (const uint64_t *)&ring->descs[(uint32_t)at & ring->mask];
    fetched.words[0] = rway_read_once(&shared[0]);
    fetched.words[1] = rway_read_once(&shared[1]);
    return fetched.desc;
}

/* What a bad peer would gain without each check: a read past the slots, a frame of somebody's old bytes, a loop. */
static inline int check_desc(const struct rway_ring *ring, const struct rway_desc *desc, uint64_t at,
                             uint64_t available)
{
    bool plain = desc->kind == RWAY_DESC_FRAME && desc->slots == 1 && desc->pushed == 0 && desc->len <= ring->payload;
    if (__builtin_expect(plain, 1) && !(desc->flags & ~RWAY_FLAGS_KNOWN) && desc->len >= RWAY_FRAME_MIN &&
        desc->len <= ring->frame_max)
        return RWAY_WHOLE;
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

/* The same for reading; how long the frames are is guessed from the one before. */
static void prefetch_for_reading(const struct rway_consumer *consumer, uint64_t at, uint32_t count, uint64_t available)
{
    const struct rway_ring *ring = &consumer->ring;
    for (uint64_t i = 0; i < available && i < 2 * (uint64_t)count; i += DESCS_PER_LINE)
        __builtin_prefetch(&ring->descs[(uint32_t)(at + i) & ring->mask]);
    if (available / 2 >= count) {
        at += count;
        available -= count;
    }
    for (uint32_t i = 0; i < count && i < available; i++) {
        const uint8_t *data = payload_at(ring, at + i);
        for (uint32_t line = 0; line < consumer->usual_len; line += RWAY_LINE)
            __builtin_prefetch(data + line);
    }
}

uint32_t rway_ring_peek(struct rway_consumer *consumer, struct rway_frame *frames, uint32_t count)
{
    const struct rway_ring ring = consumer->ring; /* a copy: nothing that is stored below can change it */
    uint64_t cursor = consumer->cursor, taken_frames = 0, taken_bytes = 0;
    uint32_t taken = 0;
    if (!rway_ring_whole(&ring))
        return 0;
    if (cursor == consumer->peer_head && !refresh_head(consumer))
        return 0;
    uint64_t available = consumer->peer_head - cursor;
    prefetch_for_reading(consumer, cursor, count, available);
    for (; taken < count && cursor != consumer->peer_head; taken++) {
        struct rway_desc desc = fetch_desc(&ring, cursor);
        int cause = check_desc(&ring, &desc, cursor, consumer->peer_head - cursor);
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
            .kind = desc.kind,
            .flags = desc.flags,
            .hash = desc.hash,
        };
        cursor += desc.slots;
        taken_frames += desc.kind == RWAY_DESC_FRAME;
        taken_bytes += desc.len;
    }
    if (taken != 0)
        consumer->usual_len = frames[taken - 1].len < PREFETCH_MAX ? frames[taken - 1].len : PREFETCH_MAX;
    consumer->cursor = cursor;
    consumer->taken_frames += taken_frames;
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
    if (consumer->counts_dirty) {
        rway_counts_store(&control->consumed, &consumer->counts);
        consumer->counts_dirty = false;
    }
    if (consumer->cursor == consumer->tail)
        return false;
    consumer->tail = consumer->cursor;
    rway_write_once(&control->consumed.frames, consumer->counts.frames);
    rway_write_once(&control->consumed.bytes, consumer->counts.bytes);
    /* Release: pairs with the acquire of tail in refresh_tail; we have read the slots before it. */
    rway_store_release(&control->tail, consumer->tail);
    return true;
}

static void ring_producer(struct rway_consumer *consumer)
{
    uint64_t wake = rway_read_once(&consumer->ring.control->wake_producer);
    if (!rway_step_wakes(consumer->looked_at, consumer->tail, wake))
        return;
    consumer->looked_at = consumer->tail;
    rway_bell_ring(&consumer->bell, &consumer->counts, &consumer->counts_dirty);
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
