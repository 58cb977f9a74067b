/*
 * An end is killed after each store that it makes, one after the other, in every operation that moves a counter; then
 * the next one takes its rings up. Nothing is delivered twice or out of order, what was lost is in the books by the
 * frame, and the books say what really is in the rings.
 *
 * Which stores there are is found out and not listed: the operation runs once by single steps (ptrace), and whoever
 * changes it changes the list. Then it runs again for each of them, up to that instruction, and the process gets a
 * SIGKILL there. Recovery is such an operation too: an end is killed while it takes up what a killed one left.
 */
/* arguments: */
/* arguments full: --kill-each 1 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ptrace.h>

#include "restart.h"

enum { STEPS_MAX = 400000, STEPS_FEW = 3000, LEFTS_MAX = 500, SINK_MAX = 64 };

static bool kill_each;         /* also in the operations of many steps */
static uint64_t drawn;         /* the last number of a group (shm/losses.c) */
static bool repeatable = true; /* false: a clock is read, which takes another number of instructions each time */

static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};

/* ---- the world: two links, and what has come out of a sink ---- */

static struct {
    int fds[2];
    uint8_t *memory[2];
    struct rway_shape shape;
    uint64_t size; /* of what is in use of a region */
    int sink[2];   /* a pipe: numbers of frames handed on, which a killed writer cannot take back */
} world;

/* carried: the accounts that the first link begins with, or NULL. */
static void make_world(const struct rway_carried carried[2])
{
    struct rway_error error;
    CHECK(rway_geometry_shape(&GEOMETRY, &world.shape, NULL) == 0, "geometry");
    world.size = world.shape.memory;
    for (int i = 0; i < 2; i++) {
        world.fds[i] =
            rway_region_create_from(&GEOMETRY, i == 0 ? FIRST_LINK : SECOND_LINK, 0, i == 0 ? carried : NULL, &error);
        CHECK(world.fds[i] >= 0, "create: %s", error.what);
        world.memory[i] = mmap(NULL, world.shape.region_size, PROT_READ | PROT_WRITE, MAP_SHARED, world.fds[i], 0);
        CHECK(world.memory[i] != MAP_FAILED, "mmap");
    }
    CHECK(pipe2(world.sink, O_NONBLOCK) == 0, "pipe");
}

static void end_world(void)
{
    for (int i = 0; i < 2; i++) {
        munmap(world.memory[i], world.shape.region_size);
        close(world.fds[i]);
        close(world.sink[i]);
    }
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

/* The numbers that the sink has got, since the world was last put back. */
static uint64_t handed[SINK_MAX];
static uint32_t handed_count;

static void read_sink(void)
{
    ssize_t got = read(world.sink[0], &handed[handed_count], (SINK_MAX - handed_count) * sizeof *handed);
    CHECK(got >= 0 || errno == EAGAIN, "sink");
    handed_count += got < 0 ? 0 : (uint32_t)((size_t)got / sizeof *handed);
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

static void attach_and_watch(void)
{
    uint64_t lost;
    op.regions[0] = end_of(0, RWAY_SIDE_B);
    op.regions[1] = end_of(1, RWAY_SIDE_A);
    rway_losses_count(op.regions, 2, &lost);
    rway_losses_watch(&op.regions[0], 1, &op.regions[1], 1);
}

static void prepare_forward(void)
{
    attach_and_watch();
    open_forwarder(&op.forwarder, op.regions[0], op.regions[1], 0);
}

static void pass_all(void *state, struct rway_packet *const *packets, uint32_t count)
{
    (void)state, (void)packets, (void)count;
}

/* With a function that could crash, so that what it sees is noted before. */
static void prepare_forward_past_others(void)
{
    static const struct rway_function PASSES = {.version = RWAY_FUNCTION_VERSION, .burst = pass_all};
    prepare_forward();
    CHECK(rway_pipeline_add(op.forwarder.pipelines[0], &PASSES, NULL, NULL, NULL, 0) == 0, "function");
}

static void prepare_waiting_forward(void)
{
    attach_and_watch();
    open_forwarder(&op.forwarder, op.regions[0], op.regions[1], 300 * 1000 * 1000);
}

static void forward(void)
{
    while (run_forwarder(&op.forwarder) != 0)
        ;
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
    struct rway_ring_snapshot ring = read_ring(world.fds[0], 0);
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
    CHECK(drops == (released == 0   ? 0
                    : released == 8 ? 3
                                    : 2),
          "%lu dropped of %lu", (unsigned long)drops, (unsigned long)released);
}

static void after_sleep(const struct books *before)
{
    check_first_link(before);
    struct books after = read_books(world.fds[0], 1);
    uint64_t drops = sum_of(after.consumed_drops) - sum_of(before->consumed_drops);
    CHECK(drops == (after.released == before->released ? 0 : 2), "%lu dropped", (unsigned long)drops);
}

/* What was handed on is not handed on again, and at most the one under way counts as lost. */
static void after_hand_on(const struct books *before)
{
    check_first_link(before);
    struct books after = read_books(world.fds[0], 1);
    uint64_t delivered = delivered_in(&after) - delivered_in(before);
    uint64_t restart = after.consumed_drops[RWAY_DROP_RESTART] - before->consumed_drops[RWAY_DROP_RESTART];
    for (uint32_t i = 0; i < handed_count; i++) {
        CHECK(handed[i] == before->released + i, "number %lu out of order", (unsigned long)handed[i]);
        CHECK(handed[i] < after.released, "number %lu is still in the ring", (unsigned long)handed[i]);
    }
    CHECK(handed_count == delivered || (restart == 1 && handed_count == delivered + 1),
          "%u handed on, %lu delivered, %lu lost", handed_count, (unsigned long)delivered, (unsigned long)restart);
    CHECK(restart <= 1, "%lu lost", (unsigned long)restart);
}

static uint64_t denied_up_to(uint64_t end)
{
    uint64_t denied = 0;
    for (uint64_t number = 0; number < end; number++)
        denied += is_denied(number);
    return denied;
}

/* Both links, by number: nothing twice, nothing out of order; and the books of the two join up. */
static void check_forward(const struct books *before)
{
    uint64_t lost;
    struct rway_region *in = end_of(0, RWAY_SIDE_B), *out = end_of(1, RWAY_SIDE_A);
    int known = rway_losses_count((struct rway_region *[]){in, out}, 2, &lost);
    CHECK(known == RWAY_LOSSES_COUNTED || known == RWAY_LOSSES_UNKNOWN, "%lu lost", (unsigned long)lost);
    rway_region_detach(in);
    rway_region_detach(out);
    check_first_link(before);
    struct books first = read_books(world.fds[0], 1), second = read_books(world.fds[1], 1);
    CHECK(offered_in(&second) == delivered_in(&first), "%lu went out of the first link, %lu into the second",
          (unsigned long)delivered_in(&first), (unsigned long)offered_in(&second));
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

static void after_forward(const struct books *before)
{
    check_forward(before);
    struct books first = read_books(world.fds[0], 1);
    uint64_t dropped = first.consumed_drops[RWAY_DROP_POLICY] + first.consumed_drops[RWAY_DROP_RESTART];
    uint64_t denied = denied_up_to(first.released);
    CHECK(dropped == denied && dropped == sum_of(first.consumed_drops), "%lu dropped, %lu denied",
          (unsigned long)dropped, (unsigned long)denied);
}

static uint64_t noted_most; /* of after_forward_past_others: that a kill came in between is not to be left to luck */

/* A burst that was noted and not released is lost as a whole: its last frame here, those before it behind. */
static void after_forward_past_others(const struct books *before)
{
    check_forward(before);
    struct books first = read_books(world.fds[0], 1), second = read_books(world.fds[1], 1);
    uint64_t noted = first.consumed_drops[RWAY_DROP_RESTART] - before->consumed_drops[RWAY_DROP_RESTART];
    uint64_t policy = first.consumed_drops[RWAY_DROP_POLICY], denied = denied_up_to(first.released);
    CHECK(noted <= 1 && policy <= denied, "%lu noted, %lu of %lu denied", (unsigned long)noted, (unsigned long)policy,
          (unsigned long)denied);
    CHECK(second.produced_drops[RWAY_DROP_RESTART] <= RWAY_BURST, "more than a burst");
    noted_most = noted > noted_most ? noted : noted_most;
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

/* In the place of the kernel's: an operation that is run again draws the same numbers, and another one others. */
ssize_t getrandom(void *buffer, size_t size, unsigned int flags)
{
    (void)flags;
    CHECK(size == sizeof drawn, "%zu random bytes", size);
    drawn += 2; /* losses.c makes it odd */
    memcpy(buffer, &drawn, size);
    return (ssize_t)size;
}

static void draw_other_numbers(void)
{
    drawn += 1000;
}

/* What a kill leaves: of the shared memory, and of what has left it. */
struct left {
    uint32_t steps;
    uint8_t *copy;
    uint64_t handed[SINK_MAX];
    uint32_t handed_count;
};

struct lefts {
    uint32_t count;
    struct left each[LEFTS_MAX];
};

static struct left *add_left(struct lefts *lefts, uint32_t steps)
{
    CHECK(lefts->count < LEFTS_MAX, "more stores than expected");
    struct left *left = &lefts->each[lefts->count++];
    *left = (struct left){.steps = steps, .copy = new_copy()};
    memcpy(left->handed, handed, handed_count * sizeof *handed);
    left->handed_count = handed_count;
    return left;
}

static void free_lefts(struct lefts *lefts)
{
    for (uint32_t i = 0; i < lefts->count; i++)
        free(lefts->each[i].copy);
    free(lefts);
}

static void put_back(const struct left *left)
{
    each_extent(restore, left->copy, NULL);
    memcpy(handed, left->handed, sizeof handed);
    handed_count = left->handed_count;
}

/* Go through once. What a kill can leave are the states in which memory or sink changed with the last instruction. */
static struct lefts *step_through(const struct operation *operation)
{
    draw_other_numbers();
    struct lefts *lefts = calloc(1, sizeof *lefts);
    CHECK(lefts != NULL, "memory");
    pid_t child = start(operation);
    struct left *last = add_left(lefts, 0);
    for (uint32_t steps = 1; step(operation, child); steps++) {
        CHECK(steps < STEPS_MAX, "%s does not end", operation->name);
        read_sink();
        if (handed_count != last->handed_count || has_changed(last->copy))
            last = add_left(lefts, steps);
    }
    kill_end(child);
    CHECK(lefts->count > 1, "%s stores nothing", operation->name);
    return lefts;
}

/* Run it again from the first state up to this one, and kill it there. */
static void kill_in(const struct operation *operation, const struct lefts *lefts, const struct left *left)
{
    put_back(&lefts->each[0]);
    pid_t child = start(operation);
    for (uint32_t done = 0; done < left->steps; done++)
        CHECK(step(operation, child), "%s: ended after %u steps, which is fewer than before", operation->name, done);
    kill_end(child);
    read_sink();
    CHECK(!has_changed(left->copy) && handed_count == left->handed_count, "%s: a kill leaves another state",
          operation->name);
}

/*
 * Kill the operation behind each of its stores, each time from the present state of the world, which is put back. A
 * long one, or one that is not repeatable, is killed once for all: its memory behind each store is put back, which is
 * the same and takes no minutes.
 */
static void kill_everywhere(const struct operation *operation)
{
    struct books before = read_books(world.fds[0], 1);
    struct lefts *lefts = step_through(operation);
    bool few = lefts->each[lefts->count - 1].steps < (kill_each ? STEPS_MAX : STEPS_FEW);
    bool each = few && repeatable;
    for (uint32_t i = 0; i < lefts->count; i++) {
        if (each)
            kill_in(operation, lefts, &lefts->each[i]);
        else
            put_back(&lefts->each[i]);
        operation->check(&before);
    }
    put_back(&lefts->each[0]);
    printf("%s: %u states%s\n", operation->name, lefts->count, each ? ", killed in each" : "");
    free_lefts(lefts);
}

/* Does the recovery store anything at all? If not, nothing is to be seen of a kill inside it. */
static bool has_work(const struct operation *recovery, const struct left *left)
{
    pid_t child = fork_end();
    if (child == 0) {
        recovery->run();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "%s ended with %#x", recovery->name, status);
    bool changed = has_changed(left->copy);
    put_back(left);
    return changed;
}

/*
 * The end that takes up what a killed one left, in whatever state, is killed itself in whatever state. The memory is
 * the one that the kills above have left; it is put back instead of being made again, which would take minutes.
 */
static void kill_recovery(const struct operation *first, const struct operation *recovery)
{
    struct books before = read_books(world.fds[0], 1);
    struct lefts *lefts = step_through(first);
    uint32_t killed = 0;
    for (uint32_t i = 0; i < lefts->count; i++) {
        put_back(&lefts->each[i]);
        draw_other_numbers();
        if (!has_work(recovery, &lefts->each[i]))
            continue;
        struct lefts *again = step_through(recovery);
        for (uint32_t k = 0; k < again->count; k++) {
            put_back(&again->each[k]);
            recovery->check(&before);
            killed++;
        }
        free_lefts(again);
    }
    put_back(&lefts->each[0]);
    printf("%s after a kill in %s: %u states\n", recovery->name, first->name, killed);
    free_lefts(lefts);
}

static void send_numbered(uint32_t count)
{
    struct rway_region *sender = end_of(0, RWAY_SIDE_A);
    struct rway_producer *producer = rway_region_producer(sender, 0);
    op.count = claim_numbered(producer, op.frames, count, producer->counts.frames);
    rway_ring_publish(producer, op.frames, op.count);
    rway_region_detach(sender);
}

static uint64_t dropped_full; /* by the forwarder, so far */

/* The second link is full except for the frames of which the receiver has taken some; the first has more than fit. */
static void leave_little_room(void)
{
    for (uint32_t burst = 0; burst < 12; burst++) {
        send_numbered(8);
        prepare_forward();
        forward();
        close_forwarder(&op.forwarder);
        rway_region_detach(op.regions[0]);
        rway_region_detach(op.regions[1]);
    }
    dropped_full = read_books(world.fds[1], 1).produced_drops[RWAY_DROP_FULL];
    CHECK(dropped_full != 0, "the second link is not full");
    struct rway_region *receiver = end_of(1, RWAY_SIDE_B);
    op.count = rway_ring_peek(rway_region_consumer(receiver, 0), op.frames, 4);
    rway_ring_release(rway_region_consumer(receiver, 0));
    rway_region_detach(receiver);
    send_numbered(16);
}

/* As after any forwarding; and what did not fit is where it was. */
static void after_waiting_forward(const struct books *before)
{
    after_forward(before);
    CHECK(read_books(world.fds[0], 1).in_flight != 0, "nothing waits");
    CHECK(read_books(world.fds[1], 1).produced_drops[RWAY_DROP_FULL] == dropped_full, "dropped as full");
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
        if (burst < 7)
            forward();
        close_forwarder(&op.forwarder);
        rway_region_detach(op.regions[0]);
        rway_region_detach(op.regions[1]);
    }
    rway_region_detach(sender);
}

/* The first steps of a ring, where both commits stand at 0; in a new region, and in one that carries on other books. */
static void kill_at_the_start(const struct operation operations[3], const struct rway_carried carried[2])
{
    make_world(carried);
    kill_everywhere(&operations[0]);
    send_numbered(8);
    kill_everywhere(&operations[1]);
    kill_everywhere(&operations[2]);
    end_world();
}

int main(int argc, char **argv)
{
    static const struct operation HAND_ON = {"hand on", prepare_receive, hand_on, after_hand_on};
    static const struct operation FORWARD = {"forward", prepare_forward, forward, after_forward};
    static const struct operation WAITING_FORWARD = {"forward into little room", prepare_waiting_forward, forward,
                                                     after_waiting_forward};
    static const struct operation ATTACH = {"attach", NULL, attach_receiver, after_hand_on};
    static const struct operation JOIN = {"attach and join", NULL, attach_and_watch, after_forward};
    static const struct operation PAST_OTHERS = {"forward past a function of others", prepare_forward_past_others,
                                                 forward, after_forward_past_others};
    static const struct operation JOIN_PAST_OTHERS = {"attach and join", NULL, attach_and_watch,
                                                      after_forward_past_others};
    const struct operation OPERATIONS[] = {
        {"publish", prepare_publish, publish, after_publish},
        {"release", prepare_release, release, after_release},
        {"hand on but one", prepare_receive, hand_on_but_one, after_hand_on},
        {"publish_more", prepare_publish, publish_more_twice, after_publish_twice},
        {"release_more", prepare_release, release_more_twice, after_release},
        {"sleep", prepare_sleep, sleep_and_release, after_sleep},
        {"detach", prepare_release, close_receiver, after_release},
        HAND_ON,
        FORWARD,
    };
    kill_each = argc == 3 && strcmp(argv[1], "--kill-each") == 0 && atol(argv[2]) != 0;
    if (!CAN_STEP) {
        printf("not stepped through: an emulator of another processor has no single steps\n");
        return 0;
    }
    struct rway_carried carried[2] = {
        {.produced = {.frames = 20, .drops = {3}}, .consumed = {.frames = 18, .drops = {1}}}};
    for (uint64_t number = 0; number < 20; number++)
        carried[0].produced.bytes += len_of(number);
    kill_at_the_start(OPERATIONS, NULL);
    kill_at_the_start(OPERATIONS, carried);
    make_world(NULL);
    fill_world();
    for (size_t i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; i++)
        kill_everywhere(&OPERATIONS[i]);
    kill_recovery(&HAND_ON, &ATTACH);
    kill_recovery(&FORWARD, &JOIN);
    kill_everywhere(&PAST_OTHERS);
    CHECK(noted_most == 1, "no kill left a burst that was noted");
    kill_recovery(&PAST_OTHERS, &JOIN_PAST_OTHERS);
    leave_little_room();
    repeatable = false;
    kill_everywhere(&WAITING_FORWARD);
    end_world();
    return 0;
}
