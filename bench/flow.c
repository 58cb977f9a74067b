/*
 * What a frame costs where a filter remembers connections: parse and judge, in bursts of 32, of flows in random order.
 *
 * Only these two are timed. The frames of a burst are made just before, from the numbers of their flows, so that no
 * table but the filter's own is too large for the caches. All flows are TCP connections that have been opened.
 *
 * As a program of its own it prints one line of JSON for each number of flows in its arguments:
 *
 *      gcc -O3 -pthread -DBENCH_FLOW_MAIN -I. -Ishm -Istack -Ibench bench/flow.c shm/(all).c stack/(all).c -o flow
 */
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

#include "stack/api.h"

enum { BURST = 32, FRAME = 54, SYN = 2, ACK = 16, INSIDE = 0, OUTSIDE = 1, PROBES = 4096 };
enum { WINDOW = 64 /* bursts */, WINDOWS = 1001 };

struct frame {
    uint8_t bytes[64];
};

struct stage {
    struct rway_filter *filter;
    struct rway_conntrack_reader *flows;
    uint32_t reader;
    uint64_t random;
    struct frame frames[BURST];
    struct rway_headers headers[BURST];
    struct rway_judged judged[BURST];
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Marsaglia's xorshift64*: any order will do that the caches cannot foresee. */
static uint32_t random_below(struct stage *stage, uint32_t limit)
{
    stage->random ^= stage->random >> 12;
    stage->random ^= stage->random << 25;
    stage->random ^= stage->random >> 27;
    return (uint32_t)((stage->random * 2685821657736338717ull >> 32) * limit >> 32);
}

static void write32(uint8_t *to, uint32_t word)
{
    for (int byte = 0; byte < 4; byte++)
        to[byte] = (uint8_t)(word >> (24 - 8 * byte));
}

/* A segment of flow number flow: client 10.x.x.x, port 40000; server 192.0.2.1, port 80. */
static void make_frame(struct frame *frame, uint32_t flow, bool reply, uint8_t flags)
{
    static const uint8_t plain[FRAME] = {2,    0, 0, 0,  0, 2, 2, 0, 0,  0,           0,
                                         1,    8, 0, /* Ethernet, IPv4 */
                                         0x45, 0, 0, 40, 0, 0, 0, 0, 64, IPPROTO_TCP, [46] = 0x50};
    uint32_t client = 0x0a000000 + flow;
    uint32_t server = 0xc0000201;

    memcpy(frame->bytes, plain, sizeof(plain));
    write32(frame->bytes + 26, reply ? server : client);
    write32(frame->bytes + 30, reply ? client : server);
    write32(frame->bytes + 34, reply ? 80u << 16 | 40000u : 40000u << 16 | 80u);
    write32(frame->bytes + 38, reply ? 7000 : flags & SYN ? 3000 : 3001);
    write32(frame->bytes + 42, reply ? 3001 : 7001);
    frame->bytes[47] = flags;
}

static uint64_t judge(struct stage *stage, uint32_t count, bool reply)
{
    struct rway_rule_counts *counts;
    const struct rway_filter_table *table;
    uint64_t started = now_ns();

    table = rway_filter_enter(stage->filter, stage->reader, &counts);
    rway_conntrack_turn(stage->flows, table, counts, 1);
    for (uint32_t i = 0; i < count; i++) {
        rway_parse(stage->frames[i].bytes, FRAME, FRAME, &stage->headers[i]);
        stage->judged[i] = (struct rway_judged){
            .bytes = stage->frames[i].bytes, .headers = &stage->headers[i], .copied = FRAME, .frame_len = FRAME};
    }
    rway_conntrack_judge(stage->flows, reply ? OUTSIDE : INSIDE, reply ? INSIDE : OUTSIDE, stage->judged, count);
    return now_ns() - started;
}

static int open_all(struct stage *stage, uint32_t flows)
{
    static const struct {
        bool reply;
        uint8_t flags;
    } steps[] = {{false, SYN}, {true, SYN | ACK}, {false, ACK}};

    for (uint32_t flow = 0; flow < flows; flow++)
        for (uint32_t step = 0; step < 3; step++) {
            make_frame(&stage->frames[0], flow, steps[step].reply, steps[step].flags);
            judge(stage, 1, steps[step].reply);
            if (stage->judged[0].stopped != RWAY_PASSES)
                return -1;
        }
    return 0;
}

/* What it costs to ask for the time. */
static uint64_t clock_cost_ns(void)
{
    uint64_t started = now_ns();

    for (uint32_t probe = 0; probe < PROBES; probe++)
        now_ns();
    return (now_ns() - started) / PROBES;
}

/* Of one window; -1: a frame did not pass. */
static double measure_window(struct stage *stage, uint32_t flows, uint64_t clock_ns)
{
    uint64_t spent = 0;

    for (uint32_t burst = 0; burst < WINDOW; burst++) {
        bool reply = burst % 2;

        for (uint32_t i = 0; i < BURST; i++)
            make_frame(&stage->frames[i], random_below(stage, flows), reply, ACK);
        spent += judge(stage, BURST, reply) - clock_ns;
        for (uint32_t i = 0; i < BURST; i++)
            if (stage->judged[i].stopped != RWAY_PASSES)
                return -1;
    }
    return (double)spent / WINDOW / BURST;
}

static int compare(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;

    return difference < 0 ? -1 : difference > 0;
}

/* The median over windows: what else runs on the machine disturbs some of them. */
static double measure(struct stage *stage, uint32_t flows)
{
    static double windows[WINDOWS];
    uint64_t clock_ns = clock_cost_ns();

    for (uint32_t window = 0; window < WINDOWS; window++) {
        windows[window] = measure_window(stage, flows, clock_ns);
        if (windows[window] < 0)
            return -1;
    }
    qsort(windows, WINDOWS, sizeof(windows[0]), compare);
    return windows[WINDOWS / 2];
}

double bench_flow_ns(uint32_t connections, uint32_t flows)
{
    const struct rway_conntrack_timeouts timeouts = {60, 7440, 240, 120, 300, 60};
    struct stage *stage = calloc(1, sizeof(*stage));
    double result = -1;

    if (!stage || !(stage->filter = rway_filter_new()))
        return -1;
    stage->random = 88172645463325252ull;
    if (rway_filter_track(stage->filter, connections, &timeouts, NULL) == 0 &&
        rway_filter_replace(stage->filter, rway_filter_table_new(NULL, 0, RWAY_ALLOW, NULL)) == 0) {
        stage->reader = (uint32_t)rway_filter_reader_add(stage->filter);
        stage->flows = rway_filter_conntrack(stage->filter, stage->reader);
        if (open_all(stage, flows) == 0)
            result = measure(stage, flows);
        rway_filter_reader_remove(stage->filter, stage->reader);
    }
    rway_filter_free(stage->filter);
    free(stage);
    return result;
}

#ifdef BENCH_FLOW_MAIN
int main(int count, char **arguments)
{
    for (int index = 1; index < count; index++) {
        uint32_t flows = (uint32_t)strtoul(arguments[index], NULL, 10);
        double ns = bench_flow_ns(flows + flows / 8, flows);

        printf("{\"case\": \"%u flows\", \"ns_per_frame\": %.1f}\n", flows, ns);
        if (ns < 0)
            return 1;
    }
    return 0;
}
#endif
