/*
 * Frames of many flows go over several queues while the receiver changes, at random, which queues it wants, and
 * releases what it has read at once or later. Whatever it wants, and whatever a hostile one writes, no flow's frames
 * are reordered (by an honest one), and nobody waits.
 *
 * --threads 0: sender and receiver take random turns, seed by seed. --threads 1: two threads at full speed.
 */
/* arguments: --seeds 60 */
/* arguments: --seeds 60 --hostile 1 */
/* arguments: --threads 1 --frames 300000 */
/* arguments full: --threads 1 --frames 10000000 */
/* variants: tsan */
/* arguments tsan: --threads 1 --frames 20000 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"
#include "ring.h"
#include "stack.h"

enum { FLOWS = 100, QUEUES = 4, LENGTH = 60, STEPS = 20000 };

static const struct rway_geometry GEOMETRY = {.queues = QUEUES, .slot_count = 64, .slot_payload = 256, .headroom = 64};
static long seeds = 20, hostile, threads, frames_wanted = 100000;

static uint64_t random_of(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

struct world {
    int fd;
    void *memory;
    uint64_t size;
    struct rway_region *sender, *receiver;
    struct rway_steering *steering;
    uint64_t sent[FLOWS], got[FLOWS];
    uint64_t accepted, taken, refused, by_queue[QUEUES];
};

static void open_world(struct world *world)
{
    struct rway_error error;
    memset(world, 0, sizeof *world);
    world->fd = rway_region_create(&GEOMETRY, 7, 0, &error);
    CHECK(world->fd >= 0, "create: %s", error.what);
    world->size = (uint64_t)lseek(world->fd, 0, SEEK_END);
    world->memory = mmap(NULL, world->size, PROT_READ | PROT_WRITE, MAP_SHARED, world->fd, 0);
    world->sender = rway_region_over(world->memory, world->size, &GEOMETRY, 7, 0, 1, &error);
    CHECK(world->sender != NULL, "attach: %s", error.what);
    world->receiver = rway_region_over(world->memory, world->size, &GEOMETRY, 7, 1, 1, &error);
    CHECK(world->receiver != NULL, "attach: %s", error.what);
    world->steering = rway_steering_new(world->sender, ~0u);
    CHECK(world->steering != NULL, "steering");
}

static void close_world(struct world *world)
{
    rway_steering_free(world->steering);
    rway_region_detach(world->sender);
    rway_region_detach(world->receiver);
    munmap(world->memory, world->size);
    close(world->fd);
}

/* Flow and number stand where a frame of no known type has its payload; so the hash is ours to choose. */
static uint32_t hash_of(uint64_t flow)
{
    return (uint32_t)(flow * 2654435761u >> 3);
}

static bool send_one(struct world *world, uint32_t flow)
{
    struct rway_frame frame = {.len = LENGTH, .hash = hash_of(flow), .flags = RWAY_FLAG_HASH};
    uint32_t chosen = rway_steering_choose(world->steering, frame.hash);
    CHECK(chosen < QUEUES, "queue %u", chosen);
    struct rway_producer *producer = rway_steering_producer(world->steering, chosen);
    if (rway_ring_claim(producer, &frame, 1) == 0)
        return false;
    uint64_t words[2] = {flow, world->sent[flow]++};
    memcpy(frame.data, words, sizeof words);
    rway_ring_publish(producer, &frame, 1);
    world->by_queue[chosen]++;
    world->accepted++;
    return true;
}

/* Take up to count frames of a queue, and release them and those before, or leave that to a later call. */
static uint32_t take(struct world *world, uint32_t queue, uint32_t count, bool release)
{
    struct rway_consumer *consumer = rway_region_consumer(world->receiver, queue);
    struct rway_frame frames[64];
    uint32_t taken = rway_ring_peek(consumer, frames, count);
    for (uint32_t i = 0; i < taken; i++) {
        uint64_t words[2];
        memcpy(words, frames[i].data, sizeof words);
        CHECK(words[0] < FLOWS, "flow %lu", (unsigned long)words[0]);
        CHECK(hostile || words[1] == world->got[words[0]], "queue %u: flow %lu: %lu came where %lu was due", queue,
              (unsigned long)words[0], (unsigned long)words[1], (unsigned long)world->got[words[0]]);
        world->got[words[0]] = words[1] + 1;
    }
    if (release)
        rway_ring_release(consumer);
    world->taken += taken;
    return taken;
}

static void drain(struct world *world)
{
    for (uint32_t queue = 0; queue < QUEUES; queue++)
        while (take(world, queue, 64, true) != 0)
            ;
}

/* Wishes that an honest peer does not have. What it may say of its tail is run_with_a_bad_tail's. */
static void write_nonsense(struct world *world, uint64_t *state)
{
    const uint32_t wishes[] = {0, UINT32_MAX, (uint32_t)random_of(state), 1u << 31, 1u << QUEUES};
    rway_write_once(&world->receiver->own->queues_served, wishes[random_of(state) % 5]);
}

/* Each flow is in a queue that is wanted, and each of those is used, at once when the flow's frames are released. */
static void check_queues(struct world *world, uint32_t wanted)
{
    rway_region_serve(world->receiver, wanted);
    drain(world);
    memset(world->by_queue, 0, sizeof world->by_queue);
    rway_steering_follow(world->steering);
    for (uint32_t flow = 0; flow < FLOWS; flow++) {
        CHECK(send_one(world, flow), "flow %u waits", flow);
        drain(world);
        rway_steering_follow(world->steering);
    }
    for (uint32_t queue = 0; queue < QUEUES; queue++)
        CHECK((world->by_queue[queue] != 0) == (wanted >> queue & 1), "queue %u, wanted %#x: %lu frames", queue, wanted,
              (unsigned long)world->by_queue[queue]);
}

static void run_model(uint64_t seed)
{
    struct world world;
    uint64_t state = seed;
    open_world(&world);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint64_t random = random_of(&state);
        if (random % 16 < 8) {
            rway_steering_follow(world.steering);
            for (uint32_t left = (uint32_t)(random >> 8) % 40; left != 0; left--)
                world.refused += !send_one(&world, (uint32_t)(random_of(&state) % FLOWS));
        } else if (random % 16 < 15) {
            take(&world, (uint32_t)(random >> 8) % QUEUES, 1 + (uint32_t)(random >> 16) % 64, random >> 32 & 1);
        } else if (hostile) {
            write_nonsense(&world, &state);
        } else {
            rway_region_serve(world.receiver, (uint32_t)(random >> 8));
        }
    }
    CHECK(!rway_region_broken(world.sender), "broken: %d", rway_region_broken(world.sender));
    for (uint32_t wanted = 1; wanted < 1u << QUEUES; wanted++)
        check_queues(&world, wanted);
    drain(&world);
    CHECK(world.taken == world.accepted, "accepted %lu, taken %lu", (unsigned long)world.accepted,
          (unsigned long)world.taken);
    CHECK(hostile || world.accepted > STEPS, "only %lu frames", (unsigned long)world.accepted);
    close_world(&world);
}

/* A tail that cannot be breaks the region, as everywhere; the steering goes on choosing, and nothing is sent. */
static void run_with_a_bad_tail(void)
{
    struct world world;
    open_world(&world);
    rway_region_serve(world.receiver, 1);
    rway_steering_follow(world.steering);
    rway_write_once(&world.receiver->consumers[0].ring.control->tail, 1000);
    rway_write_once(&world.receiver->consumers[1].ring.control->tail, 1000);
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        send_one(&world, flow);
    CHECK(rway_region_broken(world.sender) == RWAY_BROKEN_TAIL, "whole");
    close_world(&world);
}

static void *send_all(void *argument)
{
    struct world *world = argument;
    uint64_t state = 3;
    while (world->accepted < (uint64_t)frames_wanted) {
        rway_steering_follow(world->steering);
        for (int i = 0; i < 32; i++)
            world->refused += !send_one(world, (uint32_t)(random_of(&state) % FLOWS));
    }
    return NULL;
}

static void run_threads(void)
{
    static const uint32_t wishes[] = {0xf, 1, 7, 3};
    struct world world;
    pthread_t thread;
    uint64_t next_wish = 0, wish = 0;
    open_world(&world);
    pthread_create(&thread, NULL, send_all, &world);
    while (world.taken < (uint64_t)frames_wanted) {
        if (world.taken >= next_wish) {
            rway_region_serve(world.receiver, wishes[wish++ % 4]);
            next_wish += (uint64_t)frames_wanted / 16;
        }
        for (uint32_t queue = 0; queue < QUEUES; queue++)
            take(&world, queue, 32, true);
    }
    pthread_join(thread, NULL);
    drain(&world);
    CHECK(world.taken == world.accepted, "accepted %lu, taken %lu", (unsigned long)world.accepted,
          (unsigned long)world.taken);
    printf("%lu frames, %lu refused; by queue %lu %lu %lu %lu\n", (unsigned long)world.accepted,
           (unsigned long)world.refused, (unsigned long)world.by_queue[0], (unsigned long)world.by_queue[1],
           (unsigned long)world.by_queue[2], (unsigned long)world.by_queue[3]);
    for (uint32_t queue = 0; queue < QUEUES; queue++)
        CHECK(world.by_queue[queue] != 0, "queue %u was not used", queue);
    close_world(&world);
}

int main(int argc, char **argv)
{
    const struct {
        const char *name;
        long *value;
    } known[] = {{"--seeds", &seeds}, {"--hostile", &hostile}, {"--threads", &threads}, {"--frames", &frames_wanted}};
    for (int i = 1; i + 1 < argc; i += 2)
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            if (strcmp(argv[i], known[k].name) == 0)
                *known[k].value = atol(argv[i + 1]);
    if (threads) {
        run_threads();
        return 0;
    }
    for (long seed = 1; seed <= seeds; seed++)
        run_model((uint64_t)seed);
    run_with_a_bad_tail();
    return 0;
}
