/*
 * A tool reads a region while its two ends are busy: what it reads is of no single instant, and still never counters
 * that cannot be; when the ends are quiet it is exact.
 */
/* arguments: --readings 100000 */
/* arguments full: --readings 5000000 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"

static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};
static bool quiet;

static void *produce(void *argument)
{
    struct rway_producer *producer = rway_region_producer(argument, 0);
    for (uint32_t burst = 1; !__atomic_load_n(&quiet, __ATOMIC_RELAXED); burst = burst % 8 + 1) {
        struct rway_frame frames[8];
        for (uint32_t i = 0; i < burst; i++)
            frames[i] = (struct rway_frame){.len = 60 + 200 * burst};
        rway_ring_publish(producer, frames, rway_ring_claim(producer, frames, burst));
    }
    return NULL;
}

static void *consume(void *argument)
{
    struct rway_consumer *consumer = rway_region_consumer(argument, 0);
    while (!__atomic_load_n(&quiet, __ATOMIC_RELAXED)) {
        struct rway_frame frames[8];
        rway_ring_peek(consumer, frames, 8);
        rway_ring_release(consumer);
    }
    return NULL;
}

static void read_once(int fd, struct rway_ring_snapshot *ring)
{
    struct rway_snapshot snapshot;
    struct rway_error error;
    CHECK(rway_region_read(fd, &snapshot, &error) == 0, "%s %lu", error.what, (unsigned long)error.found);
    CHECK(rway_ring_read(fd, &snapshot, RWAY_SIDE_A, 0, ring, &error) == 0, "%s %ld", error.what, (long)error.found);
    CHECK(ring->head - ring->tail <= GEOMETRY.slot_count, "head %lu, tail %lu", (unsigned long)ring->head,
          (unsigned long)ring->tail);
    CHECK(ring->in_flight <= GEOMETRY.slot_count, "in flight %lu", (unsigned long)ring->in_flight);
}

int main(int argc, char **argv)
{
    struct rway_error error;
    struct rway_ring_snapshot ring;
    pthread_t producing, consuming;
    long readings = argc == 3 && strcmp(argv[1], "--readings") == 0 ? atol(argv[2]) : 100000;
    int fd = rway_region_create(&GEOMETRY, 7, 0, &error);
    struct rway_region *a = rway_region_attach(fd, &GEOMETRY, 7, RWAY_SIDE_A, 1, &error);
    struct rway_region *b = rway_region_attach(fd, &GEOMETRY, 7, RWAY_SIDE_B, 1, &error);
    CHECK(a != NULL && b != NULL, "%s", error.what);
    CHECK(pthread_create(&producing, NULL, produce, a) == 0, "no thread");
    CHECK(pthread_create(&consuming, NULL, consume, b) == 0, "no thread");
    long done = 0;
    do
        read_once(fd, &ring);
    while (++done < readings || ring.head < GEOMETRY.slot_count * 100);
    __atomic_store_n(&quiet, true, __ATOMIC_RELAXED);
    pthread_join(producing, NULL);
    pthread_join(consuming, NULL);
    read_once(fd, &ring);
    CHECK(ring.produced.frames == ring.consumed.frames + ring.in_flight, "published %lu, released %lu + %lu",
          (unsigned long)ring.produced.frames, (unsigned long)ring.consumed.frames, (unsigned long)ring.in_flight);
    rway_region_detach(a);
    rway_region_detach(b);
    printf("%ld readings while %lu frames went by\n", done, (unsigned long)ring.produced.frames);
    return 0;
}
