/*
 * What a packet function costs: bursts of parsed UDP packets, half of them to one port, given to it in a thread of its
 * own, as a loop does. In processor time, so that what else the machine does counts little.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "bench.h"

#include "stack/function.h"

enum { BURST = 32, FRAME = 64, WINDOWS = 25, WINDOW_NS = 4 * 1000 * 1000 };

struct run {
    const struct rway_function *function; /* NULL: what there is to do besides */
    void *state;
    double ns; /* a packet, the median of windows; -1: the frame is not what the parser takes */
    uint8_t frame[FRAME];
    struct rway_packet packets[BURST];
};

static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* As it has just come in; the port is that of the example's default, or another. */
static int open_packet(struct run *run, uint32_t at)
{
    struct rway_packet *packet = &run->packets[at];
    packet->bytes = packet->room + RWAY_PUSH_MAX;
    packet->private_len = packet->skip = packet->len = FRAME;
    packet->verdict = RWAY_VERDICT_NEXT;
    memcpy(packet->bytes, run->frame, FRAME);
    packet->bytes[36] = at % 2 ? 0x01 : 0x02; /* 443: 0x01bb */
    return rway_parse(packet->bytes, FRAME, FRAME, &packet->headers);
}

static void give_burst(struct run *run)
{
    struct rway_packet *packets[BURST];
    for (uint32_t i = 0; i < BURST; i++) {
        memcpy(run->packets[i].bytes, run->frame, 36);
        run->packets[i].verdict = RWAY_VERDICT_NEXT;
        packets[i] = &run->packets[i];
    }
    if (run->function != NULL)
        run->function->burst(run->state, packets, BURST);
    __asm__ volatile("" : : "r"(packets) : "memory");
}

static int by_size(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void *measure(void *argument)
{
    static const uint8_t HEADERS[] = {2, 0, 0,  0,  0, 2, 2,  0, 0, 0, 0,  1, 8, 0, 0x45, 0, 0, 50,   0, 0,
                                      0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 1, 0xbb, 0, 30};
    struct run *run = argument;
    double found[WINDOWS];
    memcpy(run->frame, HEADERS, sizeof HEADERS);
    for (uint32_t i = 0; i < BURST; i++)
        if (open_packet(run, i) != RWAY_WELL_FORMED)
            return NULL;
    for (int window = 0; window < WINDOWS; window++) {
        uint64_t began = thread_ns(), now, packets = 0;
        for (now = began; now - began < WINDOW_NS; now = thread_ns())
            for (int burst = 0; burst < 16; burst++, packets += BURST)
                give_burst(run);
        found[window] = (double)(now - began) / (double)packets;
    }
    qsort(found, WINDOWS, sizeof *found, by_size);
    run->ns = found[WINDOWS / 2];
    return NULL;
}

double bench_function_ns(const void *function, void *state)
{
    struct run run = {.function = function, .state = state, .ns = -1};
    pthread_t thread;
    if (pthread_create(&thread, NULL, measure, &run) != 0)
        return -1;
    pthread_join(thread, NULL);
    return run.ns;
}
