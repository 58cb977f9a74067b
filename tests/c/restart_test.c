/*
 * A sender, a forwarder and a receiver are killed at random moments while frames go through, and start again on the
 * same two links. Each frame arrives once at most and in order, and the books of the whole way balance by the
 * frame: what the sender offered was delivered or dropped by cause, and what a kill cost is under restart.
 *
 * The forwarder waits while the second link is full, so that it drops nothing; with --full drop, both drop.
 *
 * The receiver is one that hands frames on one by one, to a pipe: what is in there was delivered, whoever is killed
 * next. A frame's number is how many frames the sender had offered before it by its books, so it goes on by them too.
 *
 * The moment at which a forwarder holds what is in neither ring is short: some kills are aimed at it, by single steps.
 */
/* arguments: --kills 500 --aimed 4 --seed 1 */
/* arguments: --kills 500 --aimed 4 --seed 2 --queues 3 */
/* arguments: --kills 300 --seed 3 --full drop */
/* arguments: --kills 300 --seed 4 --take first */
/* arguments full: --kills 30000 --aimed 100 --seed 5 */
/* arguments full: --kills 30000 --aimed 100 --seed 6 --queues 2 --full drop */
/* arguments full: --kills 30000 --aimed 100 --seed 7 --queues 4 --take first */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ptrace.h>

#include "restart.h"

static struct {
    long kills, aimed, seed, queues;
    bool drop, take_first;
} options = {.kills = 20, .seed = 1, .queues = 1};

static struct rway_geometry geometry = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};
static int links[2];
static struct rway_shape shape;
static const uint8_t *first_link; /* mapped here too, to look at */
static int sink[2];
enum { SENDER, FORWARDER, RECEIVER, ENDS };
enum { PATIENCE_US = 300 * 1000 * 1000 /* longer than the test: who is killed comes back */ };
static uint32_t *ending; /* shared by all processes; bit n: end n is to go when it has nothing to do */

struct arrival {
    uint32_t queue;
    uint32_t pad;
    uint64_t number;
};

static bool is_ending(int end)
{
    return __atomic_load_n(ending, __ATOMIC_ACQUIRE) >> end & 1;
}

/* ---- the three ends ---- */

/* A burst for one queue. Numbers go on where the books stand: a burst that was lost with its sender never had any. */
static void send_burst(struct rway_producer *producer, uint64_t random)
{
    struct rway_frame frames[16];
    uint32_t count = 1 + (uint32_t)(random % 16);
    uint64_t number = producer->counts.frames + producer->dropped;
    uint32_t claimed = claim_numbered(producer, frames, count, number);
    if (options.drop && claimed < count)
        rway_producer_drop(producer, RWAY_DROP_FULL, count - claimed);
    if (random >> 8 & 1)
        rway_ring_publish(producer, frames, claimed);
    else
        rway_ring_publish_more(producer, frames, claimed);
    if (claimed == 0)
        sched_yield();
}

static void run_sender(uint64_t random)
{
    struct rway_region *region = attach(links[0], &geometry, FIRST_LINK, RWAY_SIDE_A);
    while (!is_ending(SENDER)) {
        random = mix(random);
        send_burst(rway_region_producer(region, (uint32_t)(random >> 32) % geometry.queues), random);
    }
    rway_region_detach(region);
}

static void run_the_forwarder(void)
{
    struct forwarder forwarder;
    uint64_t lost;
    struct rway_region *in = attach(links[0], &geometry, FIRST_LINK, RWAY_SIDE_B);
    struct rway_region *out = attach(links[1], &geometry, SECOND_LINK, RWAY_SIDE_A);
    int known = rway_losses_count((struct rway_region *[]){in, out}, 2, &lost);
    CHECK(known != RWAY_LOSSES_IMPLAUSIBLE, "%lu frames lost", (unsigned long)lost);
    rway_losses_watch(&in, 1, &out, 1);
    open_forwarder(&forwarder, in, out, options.drop ? 0 : PATIENCE_US);
    bool more, last;
    do {
        last = is_ending(FORWARDER); /* before looking: what was sent by then is all there is */
        more = run_forwarder(&forwarder) != 0;
        if (!more)
            sched_yield();
    } while (more || !last || has_waiting(&forwarder));
    close_forwarder(&forwarder);
    rway_losses_forget(in);
    rway_losses_forget(out);
    rway_region_detach(in);
    rway_region_detach(out);
}

static void hand_on(uint32_t queue, uint64_t number)
{
    struct arrival arrival = {.queue = queue, .number = number};
    CHECK(write(sink[1], &arrival, sizeof arrival) == sizeof arrival, "sink: %s", strerror(errno));
}

static uint32_t receive(struct rway_consumer *consumer, uint32_t queue)
{
    struct rway_frame frames[16];
    uint64_t numbers[16];
    uint32_t taken = rway_ring_peek(consumer, frames, 16);
    for (uint32_t i = 0; i < taken; i++) {
        numbers[i] = number_in(&frames[i]);
        if (options.take_first)
            continue;
        rway_consumer_begin(consumer, &frames[i]);
        hand_on(queue, numbers[i]);
    }
    rway_ring_release(consumer);
    for (uint32_t i = 0; i < taken && options.take_first; i++)
        hand_on(queue, numbers[i]);
    return taken;
}

static void run_receiver(void)
{
    struct rway_region *region = attach(links[1], &geometry, SECOND_LINK, RWAY_SIDE_B);
    bool more, last;
    do {
        last = is_ending(RECEIVER);
        more = false;
        for (uint32_t queue = 0; queue < geometry.queues; queue++)
            more |= receive(rway_region_consumer(region, queue), queue) != 0;
        if (!more)
            sched_yield();
    } while (more || !last);
    rway_region_detach(region);
}

static pid_t start(int end, uint64_t random)
{
    pid_t child = fork_end();
    if (child != 0)
        return child;
    if (end == SENDER)
        run_sender(random);
    else if (end == FORWARDER)
        run_the_forwarder();
    else
        run_receiver();
    _exit(0);
}

/* ---- what arrives ---- */

static struct {
    uint64_t count;
    uint64_t next[RWAY_QUEUES_MAX]; /* the least number that may come */
} arrived;

/* Take what is in the sink; wait for something if asked to. */
static void look_at_sink(bool wait)
{
    struct arrival arrivals[256];
    ssize_t got;
    fcntl(sink[0], F_SETFL, wait ? 0 : O_NONBLOCK);
    while ((got = read(sink[0], arrivals, sizeof arrivals)) > 0) {
        CHECK(got % (ssize_t)sizeof *arrivals == 0, "a part of an arrival");
        for (size_t i = 0; i < (size_t)got / sizeof *arrivals; i++) {
            uint32_t queue = arrivals[i].queue;
            CHECK(arrivals[i].number >= arrived.next[queue], "frame %lu of queue %u came twice or late: %lu was due",
                  (unsigned long)arrivals[i].number, queue, (unsigned long)arrived.next[queue]);
            CHECK(!is_denied(arrivals[i].number), "a frame that is denied");
            arrived.next[queue] = arrivals[i].number + 1;
            arrived.count++;
        }
        if (wait)
            return;
    }
    CHECK(got == 0 || errno == EAGAIN, "sink: %s", strerror(errno));
}

/* ---- kills ---- */

/* At a moment between two arrivals and the next few; where in its code that finds the end is left to chance. */
static void kill_at_random(pid_t ends[ENDS], uint64_t random)
{
    uint32_t arrivals = (uint32_t)(random >> 8) % 4;
    int end = (int)(random % ENDS);
    for (uint32_t i = 0; i < arrivals; i++)
        look_at_sink(true);
    for (volatile uint32_t i = 0; i < (random >> 32 & 0xffff); i++)
        ;
    kill_end(ends[end]);
    look_at_sink(false);
    ends[end] = start(end, random);
}

/* What the forwarder has released, over all queues. */
static uint64_t released_slots(void)
{
    uint64_t slots = 0;
    for (uint32_t queue = 0; queue < geometry.queues; queue++) {
        const uint8_t *control = first_link + shape.rings_offset[RWAY_SIDE_A] + queue * shape.queue_size;
        slots += rway_read_once(&((const struct rway_ring_control *)control)->tail);
    }
    return slots;
}

/* Step on until the forwarder has released a burst, and a little further; not for ever. */
static void stop_in_gap(pid_t child, uint64_t random)
{
    enum { STEPS_MAX = 500000, FURTHER_MAX = 32 };
    int status;
    CHECK(ptrace(PTRACE_SEIZE, child, NULL, NULL) == 0 && ptrace(PTRACE_INTERRUPT, child, NULL, NULL) == 0 &&
              waitpid(child, &status, 0) == child && WIFSTOPPED(status),
          "the forwarder cannot be stopped");
    uint64_t before = released_slots();
    uint32_t left = STEPS_MAX;
    for (uint32_t steps = 0; steps < left; steps++) {
        CHECK(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child &&
                  WIFSTOPPED(status),
              "no single step");
        if (left == STEPS_MAX && released_slots() != before)
            left = steps + (uint32_t)(random % FURTHER_MAX);
    }
}

static void kill_in_gap(pid_t ends[ENDS], uint64_t random)
{
    uint64_t before = released_slots();
    while (released_slots() == before) { /* it is not at work yet */
        look_at_sink(false);
        sched_yield();
    }
    if (CAN_STEP)
        stop_in_gap(ends[FORWARDER], random);
    kill_end(ends[FORWARDER]);
    look_at_sink(false);
    ends[FORWARDER] = start(FORWARDER, random);
}

/* One after the other, in the direction of the frames, so that each finds all that is to come. */
static void end_in_order(pid_t ends[ENDS])
{
    for (int end = 0; end < ENDS; end++) {
        int status;
        __atomic_fetch_or(ending, 1u << end, __ATOMIC_RELEASE);
        while (waitpid(ends[end], &status, WNOHANG) == 0)
            look_at_sink(false);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "end %d ended with %#x", end, status);
    }
    look_at_sink(false);
}

static void check_books(void)
{
    struct books first = read_books(links[0], geometry.queues), second = read_books(links[1], geometry.queues);
    uint64_t restarts = first.consumed_drops[RWAY_DROP_RESTART] + second.produced_drops[RWAY_DROP_RESTART] +
                        second.consumed_drops[RWAY_DROP_RESTART] + first.produced_drops[RWAY_DROP_RESTART];
    CHECK(first.in_flight == 0 && second.in_flight == 0, "%lu and %lu in flight", (unsigned long)first.in_flight,
          (unsigned long)second.in_flight);
    CHECK(offered_in(&second) == delivered_in(&first), "%lu went out of the first link, %lu into the second",
          (unsigned long)delivered_in(&first), (unsigned long)offered_in(&second));
    /* Of what was under way to the sink when the receiver was killed nobody knows whether it got there. */
    uint64_t unknown = options.take_first ? 0 : second.consumed_drops[RWAY_DROP_RESTART];
    uint64_t handed_late = options.take_first ? (uint64_t)options.kills * 16 * geometry.queues : 0;
    CHECK(arrived.count <= delivered_in(&second) + unknown && arrived.count + handed_late >= delivered_in(&second),
          "%lu arrived, %lu delivered, of %lu more it is not known", (unsigned long)arrived.count,
          (unsigned long)delivered_in(&second), (unsigned long)unknown);
    const uint64_t kills = (uint64_t)options.kills + (uint64_t)options.aimed;
    CHECK(restarts <= kills * RWAY_BURST * geometry.queues, "%lu lost", (unsigned long)restarts);
    CHECK(kills != 0 || restarts == 0, "%lu lost without a kill", (unsigned long)restarts);
    const uint64_t held = second.produced_drops[RWAY_DROP_RESTART];
    CHECK(options.drop || second.produced_drops[RWAY_DROP_FULL] == 0, "the forwarder did not wait");
    CHECK(!CAN_STEP || options.aimed == 0 || held != 0, "no aimed kill cost a frame");
    const uint64_t known = first.produced_drops[RWAY_DROP_FULL] + first.consumed_drops[RWAY_DROP_POLICY] +
                           second.produced_drops[RWAY_DROP_FULL];
    CHECK(offered_in(&first) == delivered_in(&second) + known + restarts, "%lu offered, %lu delivered",
          (unsigned long)offered_in(&first), (unsigned long)delivered_in(&second));
    printf("%ld kills: %lu offered, %lu arrived, %lu lost by restarts, %lu of them by the forwarder; books balance\n",
           options.kills, (unsigned long)offered_in(&first), (unsigned long)arrived.count, (unsigned long)restarts,
           (unsigned long)held);
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--kills") == 0)
            options.kills = atol(argv[i + 1]);
        else if (strcmp(argv[i], "--aimed") == 0)
            options.aimed = atol(argv[i + 1]);
        else if (strcmp(argv[i], "--seed") == 0)
            options.seed = atol(argv[i + 1]);
        else if (strcmp(argv[i], "--queues") == 0)
            options.queues = atol(argv[i + 1]);
        else if (strcmp(argv[i], "--full") == 0)
            options.drop = strcmp(argv[i + 1], "drop") == 0;
        else if (strcmp(argv[i], "--take") == 0)
            options.take_first = strcmp(argv[i + 1], "first") == 0;
        else
            CHECK(false, "unknown option %s", argv[i]);
}

int main(int argc, char **argv)
{
    pid_t ends[ENDS];
    parse(argc, argv);
    geometry.queues = (uint32_t)options.queues;
    links[0] = rway_region_create(&geometry, FIRST_LINK, 0, NULL);
    links[1] = rway_region_create(&geometry, SECOND_LINK, 0, NULL);
    CHECK(links[0] >= 0 && links[1] >= 0 && rway_geometry_shape(&geometry, &shape, NULL) == 0, "create");
    first_link = mmap(NULL, shape.region_size, PROT_READ, MAP_SHARED, links[0], 0);
    CHECK(first_link != MAP_FAILED, "mmap");
    ending = mmap(NULL, sizeof *ending, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(ending != MAP_FAILED && pipe2(sink, 0) == 0, "sink");
    uint64_t random = mix((uint64_t)options.seed);
    for (int end = 0; end < ENDS; end++)
        ends[end] = start(end, random);
    for (long kill = 0; kill < options.kills; kill++)
        kill_at_random(ends, random = mix(random));
    for (long kill = 0; kill < options.aimed; kill++)
        kill_in_gap(ends, random = mix(random));
    end_in_order(ends);
    check_books();
    return 0;
}
