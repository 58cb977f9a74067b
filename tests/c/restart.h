/* Links whose ends are killed: numbered frames that a filter lets pass or not, forwarding, and the books afterwards. */
#ifndef RESTART_H
#define RESTART_H

#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"
#include "stack/pipeline.h"

enum {
    FIRST_LINK = 7,  /* from the sender (side a) to the forwarder (side b) */
    SECOND_LINK = 8, /* from the forwarder (side a) to the receiver (side b) */
    NUMBER_AT = 42,
    PORT_AT = 36,
    DENIED_PORT = 23
};

#if defined(__x86_64__)
enum { CAN_STEP = 1 };
#else
enum { CAN_STEP = 0 }; /* other processors are emulated here, and an emulator traces nobody */
#endif

static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* One slot, two or three, of 256 bytes. */
static inline uint32_t len_of(uint64_t number)
{
    return 60 + (uint32_t)(number * 37 % 500);
}

static inline bool is_denied(uint64_t number)
{
    return number % 5 == 2;
}

/* A UDP packet over IPv4; all that is looked at lies in the first slot. */
static inline void write_frame(uint8_t *bytes, uint64_t number)
{
    static const uint8_t START[NUMBER_AT] = {2, 0, 0, 0,  0,           2, 2, 0,  0, 0, 0, 1,  8, 0, 0x45, 0, 0, 0, 0,
                                             0, 0, 0, 64, IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,    1, 0, 0, 80};
    uint32_t len = len_of(number);
    memcpy(bytes, START, sizeof START);
    bytes[16] = (uint8_t)((len - 14) >> 8);
    bytes[17] = (uint8_t)(len - 14);
    bytes[38] = (uint8_t)((len - 34) >> 8);
    bytes[39] = (uint8_t)(len - 34);
    bytes[PORT_AT + 1] = is_denied(number) ? DENIED_PORT : 80;
    memcpy(bytes + NUMBER_AT, &number, sizeof number);
}

static inline uint64_t number_in(const struct rway_frame *frame)
{
    uint64_t number;
    memcpy(&number, frame->data + NUMBER_AT, sizeof number);
    return number;
}

static inline uint32_t claim_numbered(struct rway_producer *producer, struct rway_frame *frames, uint32_t count,
                                      uint64_t from)
{
    for (uint32_t i = 0; i < count; i++)
        frames[i] = (struct rway_frame){.len = len_of(from + i)};
    uint32_t claimed = rway_ring_claim(producer, frames, count);
    for (uint32_t i = 0; i < claimed; i++)
        write_frame(frames[i].data, from + i);
    return claimed;
}

static inline struct rway_region *attach(int fd, const struct rway_geometry *geometry, uint64_t link_id, uint32_t side)
{
    struct rway_error error;
    struct rway_region *region = rway_region_attach(fd, geometry, link_id, side, 1, &error);
    CHECK(region != NULL, "attach to link %lu: %s is %lu", (unsigned long)link_id, error.what,
          (unsigned long)error.found);
    return region;
}

/* ---- a forwarder ---- */

struct forwarder {
    struct rway_region *in, *out;
    struct rway_filter *filter;
    struct rway_pipeline *pipelines[RWAY_QUEUES_MAX]; /* one for each job: port 1 is another queue in each */
    struct rway_job *jobs[RWAY_QUEUES_MAX];
};

/* patience_us: as for rway_wire_new. */
static inline void open_forwarder(struct forwarder *forwarder, struct rway_region *in, struct rway_region *out,
                                  uint64_t patience_us)
{
    struct rway_error error;
    const struct rway_rule denied = {.name = "denied",
                                     .action = RWAY_DENY,
                                     .match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_DESTINATION_PORT,
                                     .protocol = IPPROTO_UDP,
                                     .destination_port_low = DENIED_PORT,
                                     .destination_port_high = DENIED_PORT};
    *forwarder = (struct forwarder){.in = in, .out = out, .filter = rway_filter_new()};
    struct rway_filter_table *table = rway_filter_table_new(&denied, 1, RWAY_ALLOW, &error);
    CHECK(forwarder->filter != NULL && table != NULL, "%s", error.what);
    rway_filter_replace(forwarder->filter, table);
    for (uint32_t queue = 0; queue < rway_region_geometry(in)->queues; queue++) {
        struct rway_pipeline *pipeline = forwarder->pipelines[queue] = rway_pipeline_new();
        CHECK(pipeline != NULL && rway_pipeline_filter(pipeline, forwarder->filter) == 0, "no pipeline");
        CHECK(rway_pipeline_out(pipeline, 1, rway_region_producer(out, queue)) == 0, "no port");
        forwarder->jobs[queue] = rway_wire_new(pipeline, rway_region_consumer(in, queue), 0, 1, patience_us);
        CHECK(forwarder->jobs[queue] != NULL, "no job");
        rway_pipeline_hook(pipeline)->turn(rway_pipeline_hook(pipeline));
    }
}

/* What the rule, and the default, have decided over. */
static inline uint64_t judged_by(const struct forwarder *forwarder, uint32_t rule)
{
    struct rway_rule_counts counts[2];
    rway_filter_counts(forwarder->filter, counts, 2);
    return counts[rule].frames;
}

static inline uint32_t run_forwarder(struct forwarder *forwarder)
{
    uint32_t moved = 0;
    for (uint32_t queue = 0; queue < rway_region_geometry(forwarder->in)->queues; queue++)
        moved += forwarder->jobs[queue]->run(forwarder->jobs[queue]);
    return moved;
}

/* Frames that wait for room in the second link. */
static inline bool has_waiting(const struct forwarder *forwarder)
{
    bool waiting = false;
    for (uint32_t queue = 0; queue < rway_region_geometry(forwarder->in)->queues; queue++) {
        const struct rway_consumer *consumer = rway_region_consumer(forwarder->in, queue);
        waiting |= rway_read_once(&consumer->ring.control->head) != consumer->tail;
    }
    return waiting;
}

static inline void close_forwarder(struct forwarder *forwarder)
{
    for (uint32_t queue = 0; queue < rway_region_geometry(forwarder->in)->queues; queue++) {
        forwarder->jobs[queue]->free(forwarder->jobs[queue]);
        rway_pipeline_hook(forwarder->pipelines[queue])->free(rway_pipeline_hook(forwarder->pipelines[queue]));
    }
    rway_filter_free(forwarder->filter);
}

/* ---- books ---- */

/* Of the frames from side a to side b, in all queues. */
struct books {
    uint64_t published, released, in_flight, begun;
    uint64_t produced_drops[RWAY_DROPS], consumed_drops[RWAY_DROPS];
};

static inline uint64_t sum_of(const uint64_t drops[RWAY_DROPS])
{
    uint64_t sum = 0;
    for (uint32_t cause = 0; cause < RWAY_DROPS; cause++)
        sum += drops[cause];
    return sum;
}

static inline uint64_t offered_in(const struct books *books)
{
    return books->published + sum_of(books->produced_drops);
}

static inline uint64_t delivered_in(const struct books *books)
{
    return books->released - sum_of(books->consumed_drops);
}

static inline struct rway_ring_snapshot read_ring(int fd, uint32_t queue)
{
    struct rway_error error;
    struct rway_snapshot snapshot;
    struct rway_ring_snapshot ring;
    CHECK(rway_region_read(fd, &snapshot, &error) == 0, "%s", error.what);
    CHECK(rway_ring_read(fd, &snapshot, RWAY_SIDE_A, queue, &ring, &error) == 0, "%s", error.what);
    return ring;
}

/* Each ring by itself balances, whoever was killed. */
static inline struct books read_books(int fd, uint32_t queues)
{
    struct books books = {0};
    for (uint32_t queue = 0; queue < queues; queue++) {
        struct rway_ring_snapshot ring = read_ring(fd, queue);
        CHECK(ring.produced.frames == ring.consumed.frames + ring.in_flight,
              "queue %u: published %lu, released %lu + %lu", queue, (unsigned long)ring.produced.frames,
              (unsigned long)ring.consumed.frames, (unsigned long)ring.in_flight);
        books.published += ring.produced.frames;
        books.released += ring.consumed.frames;
        books.in_flight += ring.in_flight;
        books.begun += ring.begun;
        for (uint32_t cause = 0; cause < RWAY_DROPS; cause++) {
            books.produced_drops[cause] += ring.produced.drops[cause];
            books.consumed_drops[cause] += ring.consumed.drops[cause];
        }
    }
    return books;
}

/* ---- processes ---- */

/* As fork, but the child does not outlive this process. */
static inline pid_t fork_end(void)
{
    pid_t parent = getpid();
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(3);
    }
    return child;
}

static inline void kill_end(pid_t child)
{
    int status;
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child, "the end is gone");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the end ended by itself, with %#x", status);
}

#endif
