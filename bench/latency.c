/* Round trips of one small frame: through a link, and through what the kernel offers. Each ping stamps its own. */
#define _GNU_SOURCE
#include "bench.h"

#include <time.h>
#include <unistd.h>

#include "touch.h"

enum { FRAME = 64 };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void bench_sample(struct bench_samples *samples, uint64_t ns)
{
    samples->ns[samples->count % BENCH_SAMPLES] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
    __atomic_store_n(&samples->count, samples->count + 1, __ATOMIC_RELEASE);
}

/* One end of a link: how it waits is what the two kinds of round trip differ in. */
struct end {
    struct rway_producer *out;
    struct rway_consumer *in;
    struct rway_waiter *waiter; /* NULL: polls */
    struct bench_board *board;
};

static int stopped(const struct bench_board *board)
{
    return __atomic_load_n(&board->stop, __ATOMIC_RELAXED) != 0;
}

static void send_one(const struct end *end, uint64_t number)
{
    struct rway_frame frame = {.len = FRAME};
    if (rway_ring_claim(end->out, &frame, 1) != 1)
        return;
    touch_write(frame.data, FRAME, number);
    rway_ring_publish(end->out, &frame, 1);
}

/* The next frame, and whether it is the one that was expected. */
static int take_one(const struct end *end, uint64_t number)
{
    struct rway_frame frame;
    while (rway_ring_peek(end->in, &frame, 1) == 0) {
        if (stopped(end->board))
            return 0;
        if (end->waiter == NULL)
            continue;
        rway_waiter_reset(end->waiter);
        rway_waiter_add_consumer(end->waiter, end->in);
        rway_waiter_wait(end->waiter, 100 * 1000);
    }
    uint64_t wrong = touch_check(frame.data, FRAME, number);
    rway_ring_release(end->in);
    board_add(end->board, 1, FRAME, wrong != 0);
    return 1;
}

void bench_ping(void *out, void *in, int sleeping, struct bench_board *board, struct bench_samples *samples)
{
    struct end end = {out, in, sleeping ? rway_waiter_new() : NULL, board};
    for (uint64_t number = 0; !stopped(board); number++) {
        uint64_t gap_us = __atomic_load_n(&board->gap_us, __ATOMIC_RELAXED);
        if (gap_us != 0) /* so that whoever is on the way has fallen asleep */
            usleep((useconds_t)gap_us);
        uint64_t start = now_ns();
        send_one(&end, number);
        if (take_one(&end, number))
            bench_sample(samples, now_ns() - start);
    }
    rway_waiter_free(end.waiter);
}

void bench_pong(void *out, void *in, int sleeping, struct bench_board *board)
{
    struct end end = {out, in, sleeping ? rway_waiter_new() : NULL, board};
    for (uint64_t number = 0; take_one(&end, number); number++)
        send_one(&end, number);
    rway_waiter_free(end.waiter);
}

void bench_kernel_ping(int out_fd, int in_fd, struct bench_board *board, struct bench_samples *samples)
{
    uint8_t frame[FRAME];
    for (uint64_t number = 0; !stopped(board); number++) {
        uint64_t start = now_ns();
        touch_write(frame, FRAME, number);
        if (write(out_fd, frame, FRAME) != FRAME || read(in_fd, frame, FRAME) != FRAME)
            return;
        board_add(board, 1, FRAME, touch_check(frame, FRAME, number) != 0);
        bench_sample(samples, now_ns() - start);
    }
}

void bench_kernel_pong(int out_fd, int in_fd, struct bench_board *board)
{
    uint8_t frame[FRAME];
    for (uint64_t number = 0; read(in_fd, frame, FRAME) == FRAME; number++) {
        board_add(board, 1, FRAME, touch_check(frame, FRAME, number) != 0);
        if (write(out_fd, frame, FRAME) != FRAME)
            return;
    }
}
