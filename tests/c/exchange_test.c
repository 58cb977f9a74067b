/*
 * Two ends exchange frames of all sizes over one link, in both directions and over all queues at once, in two
 * processes (or, for the thread sanitizer, in two threads over one mapping). Every frame carries its number and
 * content that follows from it; order, content and, at the end, the books of every ring are checked.
 */
/* arguments: --frames 200000 */
/* arguments: --frames 1000000 --most 1514 */
/* arguments: --frames 30000 --queues 4 --slots 256 */
/* arguments: --frames 30000 --slots 64 --payload 256 --most 8192 */
/* arguments: --frames 30000 --headroom 128 --pushed 64 */
/* arguments: --frames 40000 --burst 1 --slow 1 */
/* arguments: --frames 200000 --full drop */
/* arguments: --frames 20000 --full drop --idle 1 */
/* arguments: --frames 10000 --slots 64 --payload 256 --most 1500 --lose-bells 50 */
/* arguments: --frames 2000 --slots 64 --payload 256 --most 1500 --lose-bells 100 */
/* arguments full: --frames 10000000 --most 1514 */
/* arguments full: --frames 3000000 */
/* arguments full: --frames 300000 --queues 16 --most 9000 */
/* arguments full: --frames 100000 --slots 64 --payload 256 --most 8192 --lose-bells 20 */
/* variants: tsan */
/* arguments tsan: --frames 20000 --threads 1 --most 9000 */
/* arguments tsan: --frames 8000 --threads 1 --queues 3 --slots 64 --most 9000 */
/* arguments tsan: --frames 8000 --threads 1 --slots 64 --most 9000 --lose-bells 30 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"

static struct {
    long frames, seed, queues, slots, payload, headroom, pushed, most, burst, slow, idle, threads, lose_bells;
    bool drop;
} options = {.frames = 100000,
             .seed = 1,
             .queues = 1,
             .slots = 1024,
             .payload = 2048,
             .headroom = 64,
             .most = 65664,
             .burst = 32};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Bells are the only writes of one byte to a pipe: some of them get lost on the way, as the options say. */
ssize_t write(int fd, const void *bytes, size_t size)
{
    static uint64_t calls;
    if (size == 1 && options.lose_bells) {
        uint64_t call = __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
        if (mix(call ^ (uint64_t)options.seed << 32) % 100 < (uint64_t)options.lose_bells)
            return 1;
    }
    return syscall(SYS_write, fd, bytes, size);
}

/* Mostly small frames, some of any size, some at the edges of slots. */
static uint32_t length_of(uint64_t number, uint32_t most)
{
    uint64_t random = mix(number ^ (uint64_t)options.seed);
    uint32_t len;
    switch (random % 8) {
    case 0:
        len = 60 + (uint32_t)(random >> 8) % most;
        break;
    case 1:
        len = (uint32_t)options.payload * (1 + (uint32_t)(random >> 8) % 4) + (uint32_t)(random >> 40) % 3 - 1;
        break;
    case 2:
        len = RWAY_FRAME_MIN + (uint32_t)(random >> 8) % 64;
        break;
    default:
        len = 60 + (uint32_t)(random >> 8) % 1455;
    }
    if (len < 60 && random % 8 != 2)
        len = 60;
    return len > most ? most : len;
}

struct stream {
    struct rway_region *region;
    uint32_t queue;
    uint32_t direction; /* side that produces */
    uint64_t dropped;
};

static const uint64_t END = UINT64_MAX; /* the number of the frame behind all others */

static uint64_t word_of(const struct stream *stream, uint64_t number, uint32_t at)
{
    return (mix(number * 31 + stream->queue * 2 + stream->direction) + at) * 0xbf58476d1ce4e5b9u;
}

/* The frame's content byte by byte is a stream of words, cut into pieces as the ring cuts it. */
static void fill(const struct stream *stream, const struct rway_piece *pieces, uint32_t count, uint64_t number)
{
    uint32_t at = 0;
    uint64_t base = word_of(stream, number, 0);
    for (uint32_t i = 0; i < count; i++)
        for (size_t k = 0; k < pieces[i].len; k++, at++)
            pieces[i].data[k] = at < 8 ? (uint8_t)(number >> 8 * at) : (uint8_t)((base + at * 0x9e3779b9u) >> 24);
}

static uint64_t number_in(const struct rway_piece *pieces)
{
    uint64_t number;
    memcpy(&number, pieces[0].data, 8);
    return number;
}

static void verify(const struct stream *stream, const struct rway_piece *pieces, uint32_t count, uint64_t number)
{
    uint32_t at = 0;
    uint64_t base = word_of(stream, number, 0);
    for (uint32_t i = 0; i < count; i++)
        for (size_t k = 0; k < pieces[i].len; k++, at++)
            CHECK(at < 8 || pieces[i].data[k] == (uint8_t)((base + at * 0x9e3779b9u) >> 24),
                  "frame %lu, byte %u of direction %u", (unsigned long)number, at, stream->direction);
}

static void wait_for(struct rway_waiter *waiter, struct rway_producer *producer, struct rway_consumer *consumer,
                     uint32_t slots)
{
    rway_waiter_reset(waiter);
    if (producer != NULL)
        rway_waiter_add_producer(waiter, producer, slots);
    if (consumer != NULL)
        rway_waiter_add_consumer(waiter, consumer);
    rway_waiter_wait(waiter, 1000000);
}

static void pause_a_little(uint64_t number)
{
    if (mix(number) % 512 == 0)
        usleep(200);
}

/* Claim one frame, by the full-ring rule. False: dropped. */
static bool claim_one(struct stream *stream, struct rway_waiter *waiter, struct rway_frame *frames, uint32_t claimed)
{
    struct rway_producer *producer = rway_region_producer(stream->region, stream->queue);
    uint32_t slots = rway_producer_slots(producer, frames[claimed].len, frames[claimed].pushed);
    while (rway_ring_claim(producer, &frames[claimed], 1) == 0) {
        CHECK(!rway_region_broken(stream->region), "the producer's region broke: %d",
              rway_region_broken(stream->region));
        if (options.drop) {
            rway_producer_drop(producer, RWAY_DROP_FULL, 1);
            stream->dropped++;
            return false;
        }
        wait_for(waiter, producer, NULL, slots);
    }
    return true;
}

static void publish_end(struct stream *stream, struct rway_waiter *waiter)
{
    struct rway_producer *producer = rway_region_producer(stream->region, stream->queue);
    struct rway_frame last = {.len = RWAY_FRAME_MIN};
    while (rway_ring_claim(producer, &last, 1) == 0)
        wait_for(waiter, producer, NULL, 1);
    memcpy(last.data, &END, sizeof END);
    rway_ring_publish(producer, &last, 1);
}

static void *produce(void *argument)
{
    struct stream *stream = argument;
    struct rway_producer *producer = rway_region_producer(stream->region, stream->queue);
    struct rway_waiter *waiter = rway_waiter_new();
    uint32_t most = rway_region_shape(stream->region)->frame_max;
    if (most > (uint32_t)options.most)
        most = (uint32_t)options.most;
    uint64_t number = 0;
    while (number < (uint64_t)options.frames) {
        struct rway_frame frames[64];
        struct rway_piece pieces[RWAY_PIECES_MAX];
        uint32_t claimed = 0;
        uint32_t burst = 1 + (uint32_t)(mix(number * 7) % (uint64_t)options.burst);
        for (; claimed < burst && number < (uint64_t)options.frames; number++) {
            uint32_t len = length_of(number, most);
            uint32_t pushed = len > (uint32_t)options.pushed ? (uint32_t)options.pushed : 0;
            frames[claimed] = (struct rway_frame){.len = len, .pushed = (uint16_t)pushed, .hash = (uint32_t)number};
            if (!options.drop) /* what is claimed must not wait unpublished for room that the consumer has to make */
                if (rway_producer_room(producer) < rway_producer_slots(producer, len, pushed)) {
                    if (claimed > 0)
                        break;
                }
            if (!claim_one(stream, waiter, frames, claimed))
                continue;
            fill(stream, pieces, rway_producer_pieces(producer, &frames[claimed], pieces), number);
            claimed++;
        }
        rway_ring_publish(producer, frames, claimed);
        if (options.slow)
            pause_a_little(number);
    }
    if (!options.idle)
        publish_end(stream, waiter);
    else
        rway_ring_publish(producer, NULL, 0);
    rway_waiter_free(waiter);
    return NULL;
}

static void *consume(void *argument)
{
    struct stream *stream = argument;
    struct rway_consumer *consumer = rway_region_consumer(stream->region, stream->queue);
    struct rway_waiter *waiter = rway_waiter_new();
    uint64_t expected = 0;
    for (bool end = false; !end;) {
        struct rway_frame frames[64];
        struct rway_piece pieces[RWAY_PIECES_MAX];
        uint32_t taken = rway_ring_peek(consumer, frames, (uint32_t)options.burst);
        CHECK(!rway_region_broken(stream->region), "the consumer's region broke: %d",
              rway_region_broken(stream->region));
        for (uint32_t i = 0; i < taken; i++) {
            uint32_t count = rway_consumer_pieces(consumer, &frames[i], pieces);
            uint64_t number = number_in(pieces);
            if (number == END) {
                end = true;
                continue;
            }
            CHECK(options.drop ? number >= expected : number == expected, "frame %lu came where %lu was due",
                  (unsigned long)number, (unsigned long)expected);
            CHECK(frames[i].hash == (uint32_t)number, "hash of %lu", (unsigned long)number);
            verify(stream, pieces, count, number);
            expected = number + 1;
        }
        rway_ring_release(consumer);
        if (options.slow)
            pause_a_little(expected * 3);
        if (taken == 0)
            wait_for(waiter, NULL, consumer, 0);
    }
    rway_waiter_free(waiter);
    return NULL;
}

static int pipes[2][RWAY_QUEUES_MAX][2][2]; /* producing side, queue, whose sleep (0 producer, 1 consumer), end */

static void set_bells(struct rway_region *region, uint32_t side)
{
    for (uint32_t queue = 0; queue < (uint32_t)options.queues; queue++) {
        int (*out)[2] = pipes[side][queue];
        int (*in)[2] = pipes[1 - side][queue];
        CHECK(rway_producer_bells(rway_region_producer(region, queue), dup(out[0][0]), dup(out[1][1]), NULL) == 0,
              "bells");
        CHECK(rway_consumer_bells(rway_region_consumer(region, queue), dup(in[1][0]), dup(in[0][1]), NULL) == 0,
              "bells");
    }
}

/* One end: a producing and a consuming thread per queue. */
static void run_end(struct rway_region *region, uint32_t side, struct stream *streams, pthread_t *threads)
{
    set_bells(region, side);
    for (uint32_t queue = 0; queue < (uint32_t)options.queues; queue++) {
        streams[2 * queue] = (struct stream){.region = region, .queue = queue, .direction = side};
        streams[2 * queue + 1] = (struct stream){.region = region, .queue = queue, .direction = 1 - side};
        pthread_create(&threads[2 * queue], NULL, produce, &streams[2 * queue]);
        if (!options.idle)
            pthread_create(&threads[2 * queue + 1], NULL, consume, &streams[2 * queue + 1]);
    }
}

static void join_end(struct stream *streams, pthread_t *threads)
{
    for (uint32_t queue = 0; queue < (uint32_t)options.queues; queue++) {
        pthread_join(threads[2 * queue], NULL);
        if (!options.idle)
            pthread_join(threads[2 * queue + 1], NULL);
    }
    (void)streams;
}

static struct rway_geometry geometry;

static struct rway_region *attach(int fd, void *memory, uint64_t size, uint32_t side)
{
    struct rway_error error;
    struct rway_region *region = memory ? rway_region_over(memory, size, &geometry, 7, side, 1, &error)
                                        : rway_region_attach(fd, &geometry, 7, side, 1, &error);
    CHECK(region != NULL, "attach: cause %d, %s %lu", error.cause, error.what, (unsigned long)error.found);
    return region;
}

static void check_books(int fd, uint64_t frames)
{
    struct rway_snapshot snapshot;
    struct rway_error error;
    uint64_t dropped = 0;
    CHECK(rway_region_read(fd, &snapshot, &error) == 0, "read: %s", error.what);
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t queue = 0; queue < (uint32_t)options.queues; queue++) {
            struct rway_ring_snapshot ring;
            CHECK(rway_ring_read(fd, &snapshot, side, queue, &ring, &error) == 0, "read: %s", error.what);
            uint64_t full = ring.produced.drops[RWAY_DROP_FULL];
            CHECK(ring.produced.frames + full == frames, "offered %lu", (unsigned long)(ring.produced.frames + full));
            CHECK(ring.produced.frames == ring.consumed.frames + ring.in_flight, "published %lu, released %lu + %lu",
                  (unsigned long)ring.produced.frames, (unsigned long)ring.consumed.frames,
                  (unsigned long)ring.in_flight);
            CHECK(options.idle ? ring.in_flight > 0 : ring.in_flight == 0, "in flight %lu",
                  (unsigned long)ring.in_flight);
            CHECK(options.idle || ring.produced.bytes == ring.consumed.bytes, "bytes");
            CHECK(options.drop || full == 0, "full %lu", (unsigned long)full);
            dropped += full;
        }
    printf("%ld frames, %ld queues: all there, %lu dropped, books balance\n", options.frames, options.queues,
           (unsigned long)dropped);
}

static void parse(int argc, char **argv)
{
    const struct {
        const char *name;
        long *value;
    } known[] = {{"--frames", &options.frames},
                 {"--seed", &options.seed},
                 {"--queues", &options.queues},
                 {"--slots", &options.slots},
                 {"--payload", &options.payload},
                 {"--headroom", &options.headroom},
                 {"--pushed", &options.pushed},
                 {"--most", &options.most},
                 {"--burst", &options.burst},
                 {"--slow", &options.slow},
                 {"--idle", &options.idle},
                 {"--threads", &options.threads},
                 {"--lose-bells", &options.lose_bells}};
    for (int i = 1; i + 1 < argc; i += 2) {
        bool found = strcmp(argv[i], "--full") == 0;
        options.drop |= found && strcmp(argv[i + 1], "drop") == 0;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            if (strcmp(argv[i], known[k].name) == 0) {
                *known[k].value = atol(argv[i + 1]);
                found = true;
            }
        CHECK(found, "unknown option %s", argv[i]);
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    geometry = (struct rway_geometry){.queues = (uint32_t)options.queues,
                                      .slot_count = (uint32_t)options.slots,
                                      .slot_payload = (uint32_t)options.payload,
                                      .headroom = (uint32_t)options.headroom};
    struct rway_error error;
    struct stream streams[2][2 * RWAY_QUEUES_MAX];
    pthread_t threads[2][2 * RWAY_QUEUES_MAX];
    int fd = rway_region_create(&geometry, 7, 0, &error);
    CHECK(fd >= 0, "create: %s", error.what);
    for (int side = 0; side < 2; side++)
        for (int queue = 0; queue < options.queues; queue++)
            for (int who = 0; who < 2; who++)
                CHECK(pipe2(pipes[side][queue][who], O_NONBLOCK | O_CLOEXEC) == 0, "pipe");
    if (options.threads) {
        uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        struct rway_region *a = attach(-1, memory, size, 0);
        struct rway_region *b = attach(-1, memory, size, 1);
        run_end(a, 0, streams[0], threads[0]);
        run_end(b, 1, streams[1], threads[1]);
        join_end(streams[0], threads[0]);
        join_end(streams[1], threads[1]);
        rway_region_detach(a);
        rway_region_detach(b);
    } else {
        pid_t child = fork();
        uint32_t side = child == 0;
        struct rway_region *region = attach(fd, NULL, 0, side);
        run_end(region, side, streams[side], threads[side]);
        join_end(streams[side], threads[side]);
        rway_region_detach(region);
        if (child == 0)
            _exit(0);
        int status;
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other end failed: %d", status);
    }
    check_books(fd, (uint64_t)options.frames + (options.idle ? 0 : 1)); /* and the one that says that it is the last */
    return 0;
}
