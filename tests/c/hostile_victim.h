/* What a victim does with a region under attack: take frames out, put frames in, and check all it is given. */
#ifndef HOSTILE_VICTIM_H
#define HOSTILE_VICTIM_H

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "hostile_peer.h"

enum {
    ROUND_MS = 60,    /* how long the victim goes on with a region that is still whole */
    TURNS_BROKEN = 20 /* turns it takes over a region that is broken */
};

/* What all rounds together have seen; a round that saw nothing proves nothing. */
static struct {
    uint64_t breaks[16];
    uint64_t refused;
    uint64_t taken;
    uint64_t published;
    uint64_t forwarded;
    uint64_t bad_offloads;
    uint64_t readings;
} seen;

#define COUNT(counter, number) __atomic_fetch_add(&(counter), (number), __ATOMIC_RELAXED)

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* When a thread of the victim has had enough: time on a whole region, turns on a broken one. */
struct patience {
    const struct rway_region *region;
    uint64_t until_ms;
    uint32_t broken_turns;
};

static bool goes_on(struct patience *patience)
{
    if (rway_region_broken(patience->region))
        return patience->broken_turns++ < TURNS_BROKEN;
    return now_ms() < patience->until_ms;
}

static void check_piece(const struct rway_ring *ring, const struct rway_piece *piece)
{
    const uint8_t *end = ring->slots + (uint64_t)ring->slot_count * ring->stride;
    CHECK(piece->data >= ring->slots && piece->len <= (size_t)(end - piece->data), "a piece outside the slots");
    CHECK(((size_t)(piece->data - ring->slots)) % ring->stride + piece->len <= ring->stride, "over a slot's end");
    CHECK(piece->len != 0, "an empty piece");
}

static uint64_t read_pieces(const struct rway_ring *ring, const struct rway_piece *pieces, uint32_t count,
                            const struct rway_frame *frame)
{
    uint64_t sum = 0, len = 0;
    CHECK(count >= 1 && count <= RWAY_PIECES_MAX, "%u pieces", count);
    for (uint32_t i = 0; i < count; i++) {
        check_piece(ring, &pieces[i]);
        for (size_t k = 0; k < pieces[i].len; k++)
            sum += ((volatile uint8_t *)pieces[i].data)[k];
        len += pieces[i].len;
    }
    CHECK(len == frame->len, "%lu bytes in pieces of a frame of %u", (unsigned long)len, frame->len);
    return sum;
}

static void take_in_place(struct rway_consumer *consumer)
{
    struct rway_frame frames[64];
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t taken = rway_ring_peek(consumer, frames, 64);
    CHECK(taken <= 64, "%u frames", taken);
    CHECK(consumer->peer_head - consumer->tail <= consumer->ring.slot_count, "a head too far");
    CHECK(consumer->cursor - consumer->tail <= consumer->ring.slot_count, "more frames than slots");
    for (uint32_t i = 0; i < taken; i++) {
        struct rway_offload offload;
        CHECK(frames[i].len >= RWAY_FRAME_MIN && frames[i].len <= consumer->ring.frame_max, "len %u", frames[i].len);
        uint32_t body = frames[i].len - frames[i].pushed, payload = consumer->ring.payload;
        CHECK(frames[i].slots == (body <= payload ? 1 : (body + payload - 1) / payload), "%u slots", frames[i].slots);
        read_pieces(&consumer->ring, pieces, rway_consumer_pieces(consumer, &frames[i], pieces), &frames[i]);
        if (rway_frame_offload(consumer, &frames[i], &offload) != 0)
            COUNT(seen.bad_offloads, 1);
        else
            CHECK(rway_offload_check(&offload, frames[i].len) == 0, "offload data that was checked and does not fit");
        COUNT(seen.taken, 1);
    }
    rway_ring_release(consumer);
}

/* Into a buffer of exactly its size, so that a byte too many is found. */
static void take_copied(struct rway_consumer *consumer, uint64_t random)
{
    uint32_t lens[64];
    uint64_t sum = 0;
    size_t size = consumer->ring.frame_max + 4 + random % 5000;
    uint8_t *bytes = malloc(size);
    CHECK(bytes != NULL, "memory");
    uint32_t copied = rway_frames_copy_out(consumer, bytes, size, lens, 64);
    for (uint32_t i = 0; i < copied; i++)
        sum += lens[i];
    CHECK(sum <= size, "%lu bytes copied into %lu", (unsigned long)sum, (unsigned long)size);
    COUNT(seen.taken, copied);
    free(bytes);
}

struct worker {
    struct rway_region *region;
    uint32_t queue;
    uint64_t random;
    int fd;
    pthread_t thread;
};

static void *consume(void *argument)
{
    struct worker *worker = argument;
    struct rway_consumer *consumer = rway_region_consumer(worker->region, worker->queue);
    struct rway_waiter *waiter = rway_waiter_new();
    struct patience patience = {.region = worker->region, .until_ms = now_ms() + ROUND_MS};
    while (goes_on(&patience)) {
        worker->random = mix(worker->random);
        if (worker->random % 3)
            take_in_place(consumer);
        else
            take_copied(consumer, worker->random >> 8);
        rway_waiter_reset(waiter);
        rway_waiter_add_consumer(waiter, consumer);
        rway_waiter_wait(waiter, worker->random >> 16 & 1023);
    }
    rway_waiter_free(waiter);
    return NULL;
}

static void give(struct rway_producer *producer, uint64_t random)
{
    struct rway_frame frames[16];
    struct rway_piece pieces[RWAY_PIECES_MAX];
    const struct rway_offload offload = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 6};
    for (uint32_t i = 0; i < 16; i++)
        frames[i] = (struct rway_frame){
            .len = 60 + (random >> i & 1 ? (uint32_t)(mix(random + i) % (producer->ring.frame_max - 60)) : 0)};
    uint32_t claimed = rway_ring_claim(producer, frames, 16);
    CHECK(claimed <= 16, "%u claimed", claimed);
    for (uint32_t i = 0; i < claimed; i++) {
        uint32_t count = rway_producer_pieces(producer, &frames[i], pieces);
        CHECK(count >= 1 && count <= RWAY_PIECES_MAX, "%u pieces", count);
        for (uint32_t k = 0; k < count; k++) {
            check_piece(&producer->ring, &pieces[k]);
            memset(pieces[k].data, (int)k, pieces[k].len);
        }
        rway_frame_set_offload(producer, &frames[i], &offload);
    }
    rway_ring_publish(producer, frames, claimed);
    COUNT(seen.published, claimed);
    CHECK(rway_producer_room(producer) <= producer->ring.slot_count, "more room than slots");
}

static void *produce(void *argument)
{
    struct worker *worker = argument;
    struct rway_producer *producer = rway_region_producer(worker->region, worker->queue);
    struct rway_waiter *waiter = rway_waiter_new();
    struct patience patience = {.region = worker->region, .until_ms = now_ms() + ROUND_MS};
    while (goes_on(&patience)) {
        worker->random = mix(worker->random);
        give(producer, worker->random);
        rway_waiter_reset(waiter);
        rway_waiter_add_producer(waiter, producer, 1 + (uint32_t)(worker->random >> 20 & 7));
        rway_waiter_wait(waiter, worker->random >> 16 & 1023);
    }
    rway_waiter_free(waiter);
    return NULL;
}

#endif
