/*
 * An end is killed after each store that it makes, one after the other, in every operation that moves a counter; then
 * the next one takes its rings up. Nothing is delivered twice or out of order, what was lost is in the books by the frame,
 * and the books say what really is in the rings.
 *
 * Which stores there are is found out and not listed: the operation runs once by single steps (ptrace), and whoever
 * changes it changes the list. Then it runs anew for each of them, up to the instruction before it and up to it, and the
 * process gets a SIGKILL there. Recovery is such an operation too: an end is killed while it takes up what a killed one left.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ptrace.h>

#include "restart.h"

enum { STEPS_MAX = 400000, STORES_MAX = 2000, SINK_MAX = 64 };

static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};

/* ---- the world: two links, and what has come out of a sink ---- */

static struct {
    int fds[2];
    uint8_t *memory[2];
    struct rway_shape shape;
    uint64_t size; /* of what is in use of a region */
    int sink[2];   /* a pipe: numbers of frames handed on, which a killed writer cannot take back */
} world;

static void make_world(void)
{
    CHECK(rway_geometry_shape(&GEOMETRY, &world.shape, NULL) == 0, "geometry");
    world.size = world.shape.memory;
    for (int i = 0; i < 2; i++) {
        world.fds[i] = create_link(&GEOMETRY, i == 0 ? FIRST_LINK : SECOND_LINK);
        world.memory[i] = mmap(NULL, world.shape.region_size, PROT_READ | PROT_WRITE, MAP_SHARED, world.fds[i], 0);
        CHECK(world.memory[i] != MAP_FAILED, "mmap");
    }
    CHECK(pipe2(world.sink, O_NONBLOCK) == 0, "pipe");
}

/* Header and sides; rings of one direction; of the other. */
static void each_extent(void (*visit)(uint8_t *shared, uint8_t *copy, uint64_t size, void *result), uint8_t *copy,
                        void *result)
{
    for (int i = 0; i < 2; i++) {
        const uint64_t extents[][2] = {{0, RWAY_HEADER_SIZE + 2 * RWAY_SIDE_SIZE},
                                       {world.shape.rings_offset[0], world.shape.rings_size},
                                       {world.shape.rings_offset[1], world.shape.rings_size}};
        for (int k = 0; k < 3; k++) {
            visit(world.memory[i] + extents[k][0], copy, extents[k][1], result);
            copy += extents[k][1];
        }
    }
}

static void save(uint8_t *shared, uint8_t *copy, uint64_t size, void *result)
{
    (void)result;
    memcpy(copy, shared, size);
}

static void restore(uint8_t *shared, uint8_t *copy, uint64_t size, void *result)
{
    (void)result;
    memcpy(shared, copy, size);
}

static void differ(uint8_t *shared, uint8_t *copy, uint64_t size, void *result)
{
    *(bool *)result |= memcmp(shared, copy, size) != 0;
}

static uint8_t *new_copy(void)
{
    uint8_t *copy = malloc(2 * world.size);
    CHECK(copy != NULL, "memory");
    each_extent(save, copy, NULL);
    return copy;
}

static bool has_changed(uint8_t *copy)
{
    bool changed = false;
    each_extent(differ, copy, &changed);
    return changed;
}

/* What the sink has got since it was last looked at. */
static uint32_t read_sink(uint64_t numbers[SINK_MAX])
{
    ssize_t got = read(world.sink[0], numbers, SINK_MAX * sizeof *numbers);
    CHECK(got >= 0 || errno == EAGAIN, "sink");
    return got < 0 ? 0 : (uint32_t)((size_t)got / sizeof *numbers);
}

static struct rway_region *end_of(int link, uint32_t side)
{
    return attach(world.fds[link], &GEOMETRY, link == 0 ? FIRST_LINK : SECOND_LINK, side);
}

/* ---- operations: set up before they are stepped through ---- */

static struct {
    struct rway_region *regions[2];
    struct rway_frame frames[16];
    uint32_t count;
    struct forwarder forwarder;
    struct rway_waiter *waiter;
} op;

static void prepare_publish(void)
{
    op.regions[0] = end_of(0, RWAY_SIDE_A);
    struct rway_producer *producer = rway_region_producer(op.regions[0], 0);
    op.count = claim_numbered(producer, op.frames, 4, producer->counts.frames);
    rway_producer_drop(producer, RWAY_DROP_FULL, 2);
    rway_producer_drop(producer, RWAY_DROP_OVERSIZE, 1);
}

static void publish(void)
{
    rway_ring_publish(rway_region_producer(op.regions[0], 0), op.frames, op.count);
}

static void publish_more_twice(void)
{
    struct rway_producer *producer = rway_region_producer(op.regions[0], 0);
    rway_ring_publish_more(producer, op.frames, op.count);
    op.count = claim_numbered(producer, op.frames, 3, producer->counts.frames);
    rway_ring_publish_more(producer, op.frames, op.count);
    rway_ring_publish_more(producer, NULL, 0);
}

static void prepare_release(void)
{
    op.regions[0] = end_of(0, RWAY_SIDE_B);
    struct rway_consumer *consumer = rway_region_consumer(op.regions[0], 0);
    op.count = rway_ring_peek(consumer, op.frames, 5);
    CHECK(op.count == 5, "%u frames", op.count);
    rway_consumer_drop(consumer, RWAY_DROP_OFFLOAD, 1);
    rway_consumer_drop(consumer, RWAY_DROP_SINK, 1);
    rway_consumer_pass(consumer, rway_consumer_position(consumer));
}

static void release(void)
{
    rway_ring_release(rway_region_consumer(op.regions[0], 0));
}

static void release_more_twice(void)
{
    struct rway_consumer *consumer = rway_region_consumer(op.regions[0], 0);
    rway_ring_release_more(consumer);
    op.count = rway_ring_peek(consumer, op.frames, 3);
    rway_consumer_drop(consumer, RWAY_DROP_SINK, 1);
    rway_ring_release_more(consumer);
    rway_ring_release_more(consumer);
}

/* Nobody sleeps while frames are peeked but an application that does, and it may. */
static void prepare_sleep(void)
{
    prepare_release();
    op.waiter = rway_waiter_new();
    rway_waiter_add_consumer(op.waiter, rway_region_consumer(op.regions[0], 0));
    rway_ring_peek(rway_region_consumer(op.regions[0], 0), op.frames, 16);
}

static void sleep_and_release(void)
{
    rway_waiter_wait(op.waiter, 0);
    rway_ring_release(rway_region_consumer(op.regions[0], 0));
}

static void prepare_receive(void)
{
    op.regions[0] = end_of(0, RWAY_SIDE_B);
}

/* As a tap does it: each frame goes out by a system call of its own, and the ring is released behind them. */
static void hand_on(void)
{
    struct rway_consumer *consumer = rway_region_consumer(op.regions[0], 0);
    op.count = rway_ring_peek(consumer, op.frames, 4);
    for (uint32_t i = 0; i < op.count; i++) {
        uint64_t number = number_in(&op.frames[i]);
        rway_consumer_begin(consumer, &op.frames[i]);
        if (write(world.sink[1], &number, sizeof number) != sizeof number)
            _exit(4);
    }
    rway_consumer_pass(consumer, rway_consumer_position(consumer));
    rway_ring_release(consumer);
}

/* The same with a frame in the middle that the sink refuses: it ends the burst. */
static void hand_on_but_one(void)
{
    struct rway_consumer *consumer = rway_region_consumer(op.regions[0], 0);
    op.count = rway_ring_peek(consumer, op.frames, 4);
    for (uint32_t i = 0; i < op.count; i++) {
        uint64_t number = number_in(&op.frames[i]);
        rway_consumer_begin(consumer, &op.frames[i]);
        if (i == 2) {
            rway_consumer_drop(consumer, RWAY_DROP_SINK, 1);
            rway_consumer_put_back(consumer, &op.frames[i + 1], op.count - i - 1);
            break;
        }
        if (write(world.sink[1], &number, sizeof number) != sizeof number)
            _exit(4);
    }
    rway_ring_release(consumer);
}

static void attach_receiver(void)
{
    op.regions[0] = end_of(0, RWAY_SIDE_B);
}

static void prepare_forward(void)
{
    uint64_t lost;
    op.regions[0] = end_of(0, RWAY_SIDE_B);
    op.regions[1] = end_of(1, RWAY_SIDE_A);
    rway_region_join(op.regions[0], op.regions[1], &lost);
    open_forwarder(&op.forwarder, op.regions[0], op.regions[1]);
}

static void forward(void)
{
    while (run_forwarder(&op.forwarder) != 0)
        ;
}

static void attach_and_join(void)
{
    uint64_t lost;
    op.regions[0] = end_of(0, RWAY_SIDE_B);
    op.regions[1] = end_of(1, RWAY_SIDE_A);
    rway_region_join(op.regions[0], op.regions[1], &lost);
}

static void close_receiver(void)
{
    rway_region_detach(op.regions[0]);
}

/* ---- what must hold after a kill and the next attach ---- */

/* Number n is the frame that was published as the n-th of its link: counts and contents cannot drift apart unseen. */
static void check_first_link(const struct books *before)
{
    struct rway_region *sender = end_of(0, RWAY_SIDE_A);
    struct rway_region *receiver = end_of(0, RWAY_SIDE_B);
    struct books books = read_books(world.fds[0], 1);
    struct rway_ring_reading ring = read_ring(world.fds[0], 0);
    struct rway_frame frames[64];
    uint64_t bytes = 0;
    uint32_t left = rway_ring_peek(rway_region_consumer(receiver, 0), frames, 64);
    CHECK(left == books.in_flight, "%u frames in the ring", left);
    for (uint32_t i = 0; i < left; i++)
        CHECK(number_in(&frames[i]) == books.released + i, "frame %lu as number %lu",
              (unsigned long)number_in(&frames[i]), (unsigned long)(books.released + i));
    for (uint64_t number = 0; number < books.published; number++) {
        if (number == books.released)
            CHECK(ring.consumed.bytes == bytes, "bytes released");
        bytes += len_of(number);
    }
    CHECK(ring.produced.bytes == bytes, "bytes published");
    CHECK(left != 0 || ring.consumed.bytes == bytes, "bytes released");
    CHECK(books.published >= before->published && books.released >= before->released, "counts went back");
    CHECK(rway_read_once(&((struct rway_ring_control *)(world.memory[0] + world.shape.rings_offset[0]))->passed) <=
              ring.tail, "passed is ahead of tail");
    rway_region_detach(sender);
    rway_region_detach(receiver);
}

/* Drops and the step that they belong to are one: all or nothing, what was not stored by cause as restart. */
static void check_publish(const struct books *before, uint32_t sent, uint64_t dropped)
{
    check_first_link(before);
    struct books after = read_books(world.fds[0], 1);
    uint64_t published = after.published - before->published;
    uint64_t drops = sum_of(after.produced_drops) - sum_of(before->produced_drops);
    CHECK(published == 0 || published == 4 || published == sent, "%lu published", (unsigned long)published);
    CHECK(published == 0 ? drops == 0 : drops == dropped, "%lu dropped", (unsigned long)drops);
    CHECK(sum_of(after.consumed_drops) == sum_of(before->consumed_drops), "drops of the other end");
}

static void after_publish(const struct books *before)
{
    check_publish(before, 4, 3);
}

static void after_publish_twice(const struct books *before)
{
    check_publish(before, 7, 3);
}

static void after_release(const struct books *before)
{
    check_first_link(before);
    struct books after = read_books(world.fds[0], 1);
    uint64_t released = after.released - before->released;
    uint64_t drops = sum_of(after.consumed_drops) - sum_of(before->consumed_drops);
    CHECK(drops == (released == 0 ? 0 : released == 8 ? 3 : 2), "%lu dropped of %lu", (unsigned long)drops,
          (unsigned long)released);
}

static void after_sleep(const struct books *before)
{
    check_first_link(before);
    struct books after = read_books(world.fds[0], 1);
    uint64_t drops = sum_of(after.consumed_drops) - sum_of(before->consumed_drops);
    CHECK(drops == (after.released == before->released ? 0 : 2), "%lu dropped", (unsigned long)drops);
}

/* What was handed on is not handed on again, and at most the one under way counts as lost. */
static void check_handed_on(const struct books *before, uint64_t numbers[], uint32_t count)
{
    check_first_link(before);
    struct books after = read_books(world.fds[0], 1);
    uint64_t delivered = delivered_in(&after) - delivered_in(before);
    uint64_t restart = after.consumed_drops[RWAY_DROP_RESTART] - before->consumed_drops[RWAY_DROP_RESTART];
    for (uint32_t i = 0; i < count; i++) {
        CHECK(numbers[i] == before->released + i, "number %lu out of order", (unsigned long)numbers[i]);
        CHECK(numbers[i] < after.released, "number %lu is still in the ring", (unsigned long)numbers[i]);
    }
    CHECK(count == delivered || (restart == 1 && count == delivered + 1), "%u handed on, %lu delivered, %lu lost", count,
          (unsigned long)delivered, (unsigned long)restart);
    CHECK(restart <= 1, "%lu lost", (unsigned long)restart);
}

static void after_hand_on(const struct books *before)
{
    uint64_t numbers[SINK_MAX];
    check_handed_on(before, numbers, read_sink(numbers));
}

/* The one that was killed had handed on frames before it was; they were read from the sink then. */
static uint64_t handed_before[SINK_MAX];
static uint32_t handed_before_count;

static void after_attach(const struct books *before)
{
    uint64_t none[SINK_MAX];
    CHECK(read_sink(none) == 0, "an attach hands on frames");
    check_handed_on(before, handed_before, handed_before_count);
}

/* Both links, by number: nothing twice, nothing out of order; and the books of the two join up. */
static void after_forward(const struct books *before)
{
    uint64_t lost;
    struct rway_region *in = end_of(0, RWAY_SIDE_B), *out = end_of(1, RWAY_SIDE_A);
    CHECK(rway_region_join(in, out, &lost) != RWAY_JOIN_IMPLAUSIBLE, "%lu lost", (unsigned long)lost);
    rway_region_detach(in);
    rway_region_detach(out);
    check_first_link(before);
    struct books first = read_books(world.fds[0], 1), second = read_books(world.fds[1], 1);
    CHECK(offered_in(&second) == delivered_in(&first), "%lu went out of the first link, %lu into the second",
          (unsigned long)delivered_in(&first), (unsigned long)offered_in(&second));
    uint64_t denied = 0;
    for (uint64_t number = 0; number < first.released; number++)
        denied += is_denied(number);
    uint64_t dropped = first.consumed_drops[RWAY_DROP_POLICY] + first.consumed_drops[RWAY_DROP_RESTART];
    CHECK(dropped == denied && dropped == sum_of(first.consumed_drops), "%lu dropped, %lu denied",
          (unsigned long)dropped, (unsigned long)denied);
    struct rway_region *receiver = end_of(1, RWAY_SIDE_B);
    struct rway_frame frames[64];
    uint32_t count = rway_ring_peek(rway_region_consumer(receiver, 0), frames, 64);
    CHECK(count == second.in_flight, "%u frames in the second link", count);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(i == 0 || number_in(&frames[i]) > number_in(&frames[i - 1]), "out of order");
        CHECK(number_in(&frames[i]) < first.released, "number %lu is in both links",
              (unsigned long)number_in(&frames[i]));
        CHECK(!is_denied(number_in(&frames[i])), "a frame that is denied");
    }
    rway_region_detach(receiver);
}

/* ---- stepping ---- */

struct operation {
    const char *name;
    void (*prepare)(void);
    void (*run)(void);
    void (*check)(const struct books *before);
};

/* A child that stops before the operation and, if it gets there, behind it. */
static pid_t start(const struct operation *operation)
{
    pid_t child = fork_end();
    if (child == 0) {
        if (operation->prepare != NULL)
            operation->prepare();
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(5);
        raise(SIGSTOP);
        operation->run();
        raise(SIGSTOP);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP,
          "%s: could not be traced: %#x", operation->name, status);
    return child;
}

/* One instruction. False: the operation is over. */
static bool step(const struct operation *operation, pid_t child)
{
    int status;
    CHECK(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0, "%s: no single step", operation->name);
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status), "%s: ended with %#x", operation->name, status);
    CHECK(WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP, "%s: signal %d", operation->name,
          WSTOPSIG(status));
    return WSTOPSIG(status) == SIGTRAP;
}

/* Go through once and note the steps that change shared memory. Returns how many there are. */
static uint32_t find_stores(const struct operation *operation, uint32_t stores[STORES_MAX])
{
    uint32_t count = 0, steps = 0;
    uint8_t *copy = new_copy();
    pid_t child = start(operation);
    /* What is prepared may have changed something; those are steps of another operation. */
    each_extent(save, copy, NULL);
    while (step(operation, child)) {
        CHECK(++steps < STEPS_MAX, "%s does not end", operation->name);
        if (!has_changed(copy))
            continue;
        CHECK(count < STORES_MAX, "%s: more stores than expected", operation->name);
        stores[count++] = steps;
        each_extent(save, copy, NULL);
    }
    kill_end(child);
    free(copy);
    return count;
}

static void kill_after(const struct operation *operation, uint32_t steps)
{
    pid_t child = start(operation);
    for (uint32_t done = 0; done < steps; done++)
        CHECK(step(operation, child), "%s: ended after %u steps, which is fewer than before", operation->name, done);
    kill_end(child);
}

/* Kill the operation around each of its stores, each time from the present state of the world, which it is left in. */
static uint32_t kill_everywhere(const struct operation *operation)
{
    static uint32_t stores[STORES_MAX];
    uint64_t ignored[SINK_MAX];
    uint8_t *origin = new_copy();
    struct books before = read_books(world.fds[0], 1);
    uint32_t count = find_stores(operation, stores);
    CHECK(count > 0, "%s stores nothing", operation->name);
    for (uint32_t i = 0; i < 2 * count; i++) {
        each_extent(restore, origin, NULL);
        read_sink(ignored);
        kill_after(operation, stores[i / 2] - 1 + i % 2);
        operation->check(&before);
    }
    each_extent(restore, origin, NULL);
    read_sink(ignored);
    free(origin);
    return count;
}

/* Twice: the end that takes up what a killed one left is killed itself. */
static uint32_t kill_recovery(const struct operation *first, const struct operation *recovery)
{
    static uint32_t stores[STORES_MAX];
    uint64_t ignored[SINK_MAX];
    uint8_t *origin = new_copy();
    struct books before = read_books(world.fds[0], 1);
    uint32_t count = find_stores(first, stores), killed = 0;
    for (uint32_t i = 0; i < count; i++) {
        each_extent(restore, origin, NULL);
        read_sink(ignored);
        kill_after(first, stores[i]);
        handed_before_count = read_sink(handed_before);
        uint8_t *left = new_copy();
        uint32_t recovering[STORES_MAX];
        uint32_t more = find_stores(recovery, recovering);
        for (uint32_t k = 0; k < more; k++) {
            each_extent(restore, left, NULL);
            kill_after(recovery, recovering[k]);
            recovery->check(&before);
            killed++;
        }
        free(left);
    }
    each_extent(restore, origin, NULL);
    read_sink(ignored);
    free(origin);
    return killed;
}

/* Traffic before, so that no word is 0 that might have to be something else; some frames stay in the first link. */
static void fill_world(void)
{
    struct rway_region *sender = end_of(0, RWAY_SIDE_A);
    for (uint32_t burst = 0; burst < 9; burst++) {
        struct rway_producer *producer = rway_region_producer(sender, 0);
        op.count = claim_numbered(producer, op.frames, 4, producer->counts.frames);
        rway_producer_drop(producer, RWAY_DROP_FULL, burst % 2);
        rway_ring_publish(producer, op.frames, op.count);
        prepare_forward();
        if (burst < 6)
            forward();
        close_forwarder(&op.forwarder);
        rway_region_detach(op.regions[0]);
        rway_region_detach(op.regions[1]);
    }
    rway_region_detach(sender);
}

int main(void)
{
#if defined(__x86_64__)
    static const struct operation HAND_ON = {"hand on", prepare_receive, hand_on, after_hand_on};
    static const struct operation FORWARD = {"forward", prepare_forward, forward, after_forward};
    static const struct operation ATTACH = {"attach", NULL, attach_receiver, after_attach};
    static const struct operation JOIN = {"attach and join", NULL, attach_and_join, after_forward};
    static const struct operation OPERATIONS[] = {
        {"publish", prepare_publish, publish, after_publish},
        {"publish_more", prepare_publish, publish_more_twice, after_publish_twice},
        {"release", prepare_release, release, after_release},
        {"release_more", prepare_release, release_more_twice, after_release},
        {"sleep", prepare_sleep, sleep_and_release, after_sleep},
        {"detach", prepare_release, close_receiver, after_release},
        {"hand on but one", prepare_receive, hand_on_but_one, after_hand_on},
    };
    make_world();
    fill_world();
    for (size_t i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; i++)
        printf("%s: %u stores\n", OPERATIONS[i].name, kill_everywhere(&OPERATIONS[i]));
    printf("%s: %u stores\n", HAND_ON.name, kill_everywhere(&HAND_ON));
    printf("%s: %u stores\n", FORWARD.name, kill_everywhere(&FORWARD));
    printf("recovery of a receiver: %u kills\n", kill_recovery(&HAND_ON, &ATTACH));
    printf("recovery of a forwarder: %u kills\n", kill_recovery(&FORWARD, &JOIN));
#else
    printf("not stepped through: an emulator has no single steps\n");
#endif
    return 0;
}
