/*
 * A hostile peer process scribbles over the whole of a region while this process uses it in every way there is: as a
 * consumer, as a producer, through a loop that forwards into a good region past a filter, and as a tool that reads.
 * Nothing here may crash, hang, or touch a byte outside the region; every frame that reaches the good region's far
 * end is one that the filter allows, and that region stays whole.
 *
 * The attacker uses the library itself to be believable for a while, so it is a victim of its own scribbling too: it
 * must live until it is killed.
 */
/* arguments: --rounds 160 --seed 1 */
/* arguments: --rounds 160 --seed 2 --guarded 1 */
/* arguments full: --rounds 1000 --seed 3 */
/* arguments full: --rounds 1000 --seed 4 --guarded 1 */
/* arguments asan: --rounds 1000 --seed 5 */
#define _GNU_SOURCE
#include "hostile_victim.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "stack.h"

enum {
    ROUND_S = 60, /* a round that takes longer hangs */
    LIVES = 8,    /* attachments in a round at most */
    DENIED_PORT = 23,
    PAGE = 4096
};

static struct {
    long rounds, seed, guarded;
} options = {.rounds = 20, .seed = 1};

static long current_round;

static void on_alarm(int number)
{
    char text[64];
    int len = snprintf(text, sizeof text, "round %ld did not end\n", current_round);
    ssize_t ignored = write(STDERR_FILENO, text, (size_t)len);
    (void)number;
    (void)ignored;
    _exit(2);
}

/* ---- the region between guard pages ---- */

struct mapping {
    uint8_t *reserved; /* NULL when the library maps it itself */
    uint64_t size;
};

static struct rway_region *attach(int fd, const struct rway_geometry *geometry, struct mapping *mapping)
{
    struct rway_error error;
    struct rway_shape shape;
    CHECK(rway_geometry_shape(geometry, &shape, NULL) == 0, "geometry");
    *mapping = (struct mapping){.size = shape.region_size};
    if (!options.guarded)
        return rway_region_attach(fd, geometry, LINK, RWAY_SIDE_A, 1, &error);
    mapping->reserved = mmap(NULL, shape.region_size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapping->reserved != MAP_FAILED, "reserve");
    void *memory =
        mmap(mapping->reserved + PAGE, shape.region_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    CHECK(memory != MAP_FAILED, "map");
    return rway_region_over(memory, shape.region_size, geometry, LINK, RWAY_SIDE_A, 1, &error);
}

static void detach(struct rway_region *region, struct mapping *mapping)
{
    if (region != NULL)
        rway_region_detach(region);
    if (mapping->reserved != NULL)
        munmap(mapping->reserved, mapping->size + 2 * PAGE);
}

/* ---- a loop that forwards into a good region ---- */

static struct rway_filter *filter_that_denies(uint16_t port)
{
    struct rway_error error;
    struct rway_rule rule = {.name = "denied",
                             .action = RWAY_DENY,
                             .match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_DESTINATION_PORT,
                             .protocol = IPPROTO_UDP,
                             .destination_port_low = port,
                             .destination_port_high = port};
    struct rway_filter *filter = rway_filter_new();
    struct rway_filter_table *table = rway_filter_table_new(&rule, 1, RWAY_ALLOW, &error);
    CHECK(filter != NULL && table != NULL, "filter");
    CHECK(rway_filter_replace(filter, table) == 0, "no table in force");
    return filter;
}

/* What arrives behind the filter is what the filter judged, whatever its sender has done to it since. */
static void check_passed(const struct rway_consumer *consumer, const struct rway_frame *frame)
{
    uint8_t bytes[RWAY_HEADERS_MAX];
    struct rway_headers headers;
    struct rway_offload offload;
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t count = rway_consumer_pieces(consumer, frame, pieces);
    uint32_t copied = 0;
    read_pieces(&consumer->ring, pieces, count, frame);
    for (uint32_t i = 0; i < count && copied < sizeof bytes; i++) {
        size_t here = pieces[i].len < sizeof bytes - copied ? pieces[i].len : sizeof bytes - copied;
        memcpy(bytes + copied, pieces[i].data, here);
        copied += (uint32_t)here;
    }
    CHECK(rway_parse(bytes, copied, frame->len, &headers) == RWAY_WELL_FORMED, "a frame that cannot be judged");
    CHECK(headers.protocol != IPPROTO_UDP || !(headers.flags & RWAY_HEADERS_PORTS) ||
              headers.destination_port != DENIED_PORT,
          "a frame that is denied");
    CHECK(rway_frame_offload(consumer, frame, &offload) == 0, "offload data that does not fit");
    CHECK(rway_offload_fits(&headers, &offload), "offload data of another packet");
}

static void drain(struct rway_region *far)
{
    struct rway_consumer *consumer = rway_region_consumer(far, 0);
    struct rway_frame frames[32];
    uint32_t taken;
    while ((taken = rway_ring_peek(consumer, frames, 32)) != 0) {
        for (uint32_t i = 0; i < taken; i++)
            check_passed(consumer, &frames[i]);
        rway_ring_release(consumer);
        COUNT(seen.forwarded, taken);
    }
    CHECK(!rway_region_broken(far), "the good region broke: %d", rway_region_broken(far));
}

static void check_books(int fd)
{
    struct rway_snapshot snapshot;
    struct rway_error error;
    struct rway_ring_snapshot ring;
    CHECK(rway_region_read(fd, &snapshot, &error) == 0, "%s", error.what);
    CHECK(rway_ring_read(fd, &snapshot, RWAY_SIDE_A, 0, &ring, &error) == 0, "%s", error.what);
    CHECK(ring.in_flight == 0 && ring.produced.frames == ring.consumed.frames, "the good region's books");
}

static void forward(struct rway_region *hostile, uint64_t random)
{
    struct rway_error error;
    struct rway_geometry geometry = {.queues = 1, .slot_count = 64, .slot_payload = 1024, .headroom = 64};
    int fd = rway_region_create(&geometry, LINK, 0, &error);
    struct rway_region *near = rway_region_attach(fd, &geometry, LINK, RWAY_SIDE_A, 1, &error);
    struct rway_region *far = rway_region_attach(fd, &geometry, LINK, RWAY_SIDE_B, 1, &error);
    CHECK(near != NULL && far != NULL, "%s", error.what);
    struct rway_filter *filter = filter_that_denies(DENIED_PORT);
    const struct rway_conntrack_timeouts timeouts = {1, 1, 1, 1, 1, 1};
    CHECK(random & 64 || rway_filter_track(filter, RWAY_CONNECTIONS_MIN, &timeouts, NULL) == 0, "connections");
    uint64_t patience_us = random & 128 ? random >> 8 & 0xffff : 0;
    struct rway_loop *loop = rway_loop_new((uint32_t)(random & 63));
    struct rway_pipeline *pipeline = rway_pipeline_new();
    CHECK(pipeline != NULL && rway_pipeline_filter(pipeline, filter) == 0, "filter");
    CHECK(rway_loop_hook(loop, rway_pipeline_hook(pipeline)) == 0, "hook");
    CHECK(rway_pipeline_out(pipeline, 0, rway_region_producer(hostile, 0)) == 0, "port");
    CHECK(rway_pipeline_out(pipeline, 1, rway_region_producer(near, 0)) == 0, "port");
    for (uint32_t queue = 0; queue < rway_region_geometry(hostile)->queues; queue++)
        CHECK(rway_loop_add(loop, rway_wire_new(pipeline, rway_region_consumer(hostile, queue), 0, 1, patience_us)) ==
                  0,
              "job");
    rway_loop_add(loop, rway_wire_new(pipeline, rway_region_consumer(near, 0), 1, 0, patience_us));
    CHECK(rway_loop_start(loop) == 0, "start");
    struct patience patience = {.region = hostile, .until_ms = now_ms() + ROUND_MS};
    struct rway_waiter *waiter = rway_waiter_new();
    while (goes_on(&patience)) {
        drain(far);
        give(rway_region_producer(far, 0), random = mix(random));
        rway_waiter_reset(waiter);
        rway_waiter_add_consumer(waiter, rway_region_consumer(far, 0));
        rway_waiter_wait(waiter, 500);
    }
    rway_loop_stop(loop);
    drain(far);
    rway_waiter_free(waiter);
    rway_loop_free(loop);
    rway_filter_free(filter);
    CHECK(!rway_region_broken(near), "the good region broke: %d", rway_region_broken(near));
    rway_region_detach(near);
    rway_region_detach(far);
    check_books(fd);
    close(fd);
}

/* ---- a tool that reads ---- */

static void *read_on(void *argument)
{
    struct worker *worker = argument;
    struct patience patience = {.region = worker->region, .until_ms = now_ms() + ROUND_MS};
    while (goes_on(&patience)) {
        struct rway_snapshot snapshot;
        struct rway_ring_snapshot ring;
        struct rway_side peer;
        struct rway_error error;
        rway_region_peer(worker->region, &peer);
        if (rway_region_read(worker->fd, &snapshot, &error) != 0)
            continue;
        CHECK(snapshot.header.geometry.queues <= RWAY_QUEUES_MAX, "queues");
        for (uint32_t queue = 0; queue < snapshot.header.geometry.queues; queue++)
            for (uint32_t side = 0; side < 2; side++)
                if (rway_ring_read(worker->fd, &snapshot, side, queue, &ring, &error) == 0) {
                    CHECK(ring.in_flight <= snapshot.header.geometry.slot_count, "in flight");
                    COUNT(seen.readings, 1);
                }
    }
    return NULL;
}

/* ---- rounds ---- */

static void set_bells(struct rway_region *region, struct bells *bells)
{
    for (uint32_t queue = 0; queue < rway_region_geometry(region)->queues; queue++) {
        CHECK(rway_producer_bells(rway_region_producer(region, queue), dup(bells->to_victim[0]), dup(bells->to_peer[1]),
                                  NULL) == 0,
              "bells");
        CHECK(rway_consumer_bells(rway_region_consumer(region, queue), dup(bells->to_victim[0]), dup(bells->to_peer[1]),
                                  NULL) == 0,
              "bells");
    }
}

static void use(struct rway_region *region, int fd, uint64_t random)
{
    struct worker workers[3];
    void *(*const work[])(void *) = {consume, produce, read_on};
    bool forwarding = random % 2;
    for (int i = 0; i < 3; i++) {
        workers[i] = (struct worker){.region = region, .random = mix(random + (uint64_t)i), .fd = fd};
        if (i == 2 || !forwarding)
            CHECK(pthread_create(&workers[i].thread, NULL, work[i], &workers[i]) == 0, "thread");
    }
    if (forwarding)
        forward(region, mix(random));
    for (int i = 0; i < 3; i++)
        if (i == 2 || !forwarding)
            pthread_join(workers[i].thread, NULL);
}

static void end_peer(pid_t peer)
{
    int status;
    CHECK(kill(peer, SIGKILL) == 0 && waitpid(peer, &status, 0) == peer, "the attacker is gone");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the attacker ended by itself, with %#x", status);
}

static void run_round(uint64_t random)
{
    static const uint32_t SLOTS[] = {64, 64, 128, 256};
    static const uint32_t PAYLOADS[] = {256, 2048, 512, 4096};
    struct rway_geometry geometry = {.queues = 1 + random % 3,
                                     .slot_count = SLOTS[random >> 8 & 3],
                                     .slot_payload = PAYLOADS[random >> 16 & 3],
                                     .headroom = random >> 24 & 1 ? 128 : 64};
    struct rway_error error;
    struct mapping mapping;
    struct bells bells;
    int fd = rway_region_create(&geometry, LINK, 0, &error);
    CHECK(fd >= 0, "%s", error.what);
    CHECK(pipe2(bells.to_victim, O_NONBLOCK | O_CLOEXEC) == 0 && pipe2(bells.to_peer, O_CLOEXEC) == 0 &&
              pipe2(bells.begun, O_CLOEXEC) == 0,
          "pipes");
    /* Mostly the attack begins once the victim is attached; now and then the attach itself is under attack. */
    bool attached_first = random >> 32 & 7;
    struct rway_region *region = attached_first ? attach(fd, &geometry, &mapping) : NULL;
    pid_t peer = fork_hostile_peer(fd, &geometry, &bells, mix(random));
    if (!attached_first) {
        char byte;
        CHECK(read(bells.begun[0], &byte, 1) == 1, "the attacker did not begin");
        region = attach(fd, &geometry, &mapping);
    }
    CHECK(region != NULL || !attached_first, "a whole region was refused");
    /* A broken region may be taken up again where it stands, under attack as before. */
    for (int life = 0; region != NULL && life < LIVES; life++) {
        set_bells(region, &bells);
        use(region, fd, random = mix(random));
        int cause = rway_region_broken(region);
        seen.breaks[cause & 15]++;
        if (cause == RWAY_WHOLE)
            break;
        detach(region, &mapping);
        region = attach(fd, &geometry, &mapping);
    }
    seen.refused += region == NULL;
    end_peer(peer);
    detach(region, &mapping);
    for (int i = 0; i < 2; i++) {
        close(bells.to_victim[i]);
        close(bells.to_peer[i]);
        close(bells.begun[i]);
    }
    close(fd);
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--rounds") == 0)
            options.rounds = atol(argv[i + 1]);
        else if (strcmp(argv[i], "--seed") == 0)
            options.seed = atol(argv[i + 1]);
        else if (strcmp(argv[i], "--guarded") == 0)
            options.guarded = atol(argv[i + 1]);
        else
            CHECK(false, "unknown option %s", argv[i]);
}

int main(int argc, char **argv)
{
    uint32_t causes = 0;
    parse(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, on_alarm);
    for (current_round = 0; current_round < options.rounds; current_round++) {
        alarm(ROUND_S);
        run_round(mix((uint64_t)options.seed << 32 | (uint64_t)current_round));
    }
    alarm(0);
    for (uint32_t cause = 1; cause < 16; cause++)
        causes += seen.breaks[cause] != 0;
    printf("%ld rounds: %lu ended whole, %lu in a refusal, %u causes of breaks; %lu frames taken, %lu published, "
           "%lu forwarded, %lu bad offloads, %lu readings\n",
           options.rounds, (unsigned long)seen.breaks[0], (unsigned long)seen.refused, causes,
           (unsigned long)seen.taken, (unsigned long)seen.published, (unsigned long)seen.forwarded,
           (unsigned long)seen.bad_offloads, (unsigned long)seen.readings);
    if (options.rounds >= 40) {
        CHECK(seen.taken > 1000 && seen.published > 1000 && seen.forwarded > 1000, "the victim saw too little");
        CHECK(causes >= 3 && seen.bad_offloads > 0 && seen.readings > 100, "the attacker did too little");
    }
    return 0;
}
