/* variants: tsan */
/* Tables swapped while several loop threads judge by them: nobody keeps a freed one, and no count is lost. */

#include <pthread.h>
#include <sched.h>
#include <stdio.h>

#include "expect.h"
#include "stack.h"

static struct rway_rule tcp_port_rule(const char *name, uint32_t action, uint16_t low, uint16_t high)
{
    struct rway_rule rule = {
        .action = action,
        .match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_DESTINATION_PORT,
        .protocol = IPPROTO_TCP,
        .destination_port_low = low,
        .destination_port_high = high,
    };

    snprintf(rule.name, sizeof(rule.name), "%s", name);
    return rule;
}

static struct rway_headers tcp_packet(uint16_t port)
{
    return (struct rway_headers){
        .ether = 0x0800,
        .destination_port = port,
        .ip_version = 4,
        .protocol = IPPROTO_TCP,
        .flags = RWAY_HEADERS_PORTS,
    };
}

static void readers_are_limited_and_their_numbers_used_again(void)
{
    struct rway_filter *filter = rway_filter_new();

    for (int reader = 0; reader < RWAY_READERS_MAX; reader++)
        EXPECT(rway_filter_reader_add(filter) == reader);
    EXPECT(rway_filter_reader_add(filter) == -1);
    rway_filter_reader_remove(filter, 17);
    EXPECT(rway_filter_reader_add(filter) == 17);
    rway_filter_free(filter);
}

/* One frame to port 80, judged by what is in force now. */
static int judge_once(struct rway_filter *filter, uint32_t reader)
{
    struct rway_headers packet = tcp_packet(80);
    struct rway_rule_counts *counts;
    const struct rway_filter_table *table = rway_filter_enter(filter, reader, &counts);

    return rway_filter_judge(table, &packet, 0, counts, 60);
}

static void a_new_filter_denies_everything(void)
{
    struct rway_filter *filter = rway_filter_new();
    struct rway_rule_counts sum;
    uint32_t reader = (uint32_t)rway_filter_reader_add(filter);

    EXPECT(judge_once(filter, reader) == RWAY_DENY);
    EXPECT(rway_filter_counts(filter, &sum, 1) == 1 && sum.frames == 1 && sum.bytes == 60);
    rway_filter_reader_remove(filter, reader);
    rway_filter_free(filter);
}

static void counts_follow_the_name_of_a_rule(void)
{
    struct rway_rule rules[] = {tcp_port_rule("other", RWAY_DENY, 1, 1), tcp_port_rule("web", RWAY_ALLOW, 80, 80)};
    struct rway_rule_counts sums[3];
    struct rway_filter *filter = rway_filter_new();
    uint32_t reader = (uint32_t)rway_filter_reader_add(filter);

    judge_once(filter, reader);
    rway_filter_leave(filter, reader);
    EXPECT(rway_filter_replace(filter, rway_filter_table_new(rules, 2, RWAY_DENY, NULL)) == 0);
    EXPECT(judge_once(filter, reader) == RWAY_ALLOW && judge_once(filter, reader) == RWAY_ALLOW);
    rway_filter_leave(filter, reader);
    EXPECT(rway_filter_replace(filter, rway_filter_table_new(rules + 1, 1, RWAY_DENY, NULL)) == 0);
    EXPECT(judge_once(filter, reader) == RWAY_ALLOW);
    EXPECT(rway_filter_counts(filter, sums, 3) == 2);
    EXPECT(sums[0].frames == 3 && sums[0].bytes == 180 && sums[1].frames == 1);
    EXPECT(rway_filter_counts(filter, sums, 1) == 2);
    rway_filter_free(filter);
}

static void a_reader_that_does_not_come_by_keeps_its_table_and_its_counts(void)
{
    struct rway_rule web = tcp_port_rule("web", RWAY_ALLOW, 80, 80);
    struct rway_headers packet = tcp_packet(80);
    struct rway_rule_counts sums[2];
    struct rway_rule_counts *counts;
    struct rway_filter *filter = rway_filter_new();
    uint32_t reader = (uint32_t)rway_filter_reader_add(filter);
    const struct rway_filter_table *held;

    EXPECT(rway_filter_replace(filter, rway_filter_table_new(&web, 1, RWAY_DENY, NULL)) == 0);
    held = rway_filter_enter(filter, reader, &counts);
    web.action = RWAY_DENY;
    EXPECT(rway_filter_replace(filter, rway_filter_table_new(&web, 1, RWAY_DENY, NULL)) == -1);
    EXPECT(rway_filter_judge(held, &packet, 0, counts, 60) == RWAY_ALLOW); /* still there */
    EXPECT(rway_filter_counts(filter, sums, 2) == 2 && sums[0].frames == 1);
    EXPECT(judge_once(filter, reader) == RWAY_DENY); /* has come by */
    EXPECT(rway_filter_counts(filter, sums, 2) == 2 && sums[0].frames == 2);
    EXPECT(rway_filter_counts(filter, sums, 2) == 2 && sums[0].frames == 2); /* the old one is counted once */
    rway_filter_free(filter);
}

enum { THREADS = 4, SWAPS = 300 };

struct loop {
    pthread_t thread;
    struct rway_filter *filter;
    uint64_t judged; /* valid once the thread has ended */
    bool *stop;
    uint64_t *progress;
};

/* A loop thread: bursts of frames, now and then a sleep. */
static void *run_loop(void *argument)
{
    struct loop *loop = argument;
    struct rway_headers packet = tcp_packet(80);
    uint32_t reader = (uint32_t)rway_filter_reader_add(loop->filter);

    for (uint64_t round = 0; !__atomic_load_n(loop->stop, __ATOMIC_RELAXED); round++) {
        struct rway_rule_counts *counts;
        const struct rway_filter_table *table = rway_filter_enter(loop->filter, reader, &counts);

        for (uint32_t frame = 0; frame < 8; frame++, loop->judged++)
            rway_filter_judge(table, &packet, frame, counts, 60);
        if (round % 16 == 0)
            rway_filter_leave(loop->filter, reader);
        __atomic_fetch_add(loop->progress, 1, __ATOMIC_RELAXED);
    }
    rway_filter_reader_remove(loop->filter, reader);
    return NULL;
}

/* Tables of different length and order that all know the rule "web", which takes every frame. */
static struct rway_filter_table *table_number(uint32_t number)
{
    struct rway_rule rules[8];
    uint32_t count = 1 + number % 8;

    for (uint32_t index = 0; index + 1 < count; index++) {
        char name[16];

        snprintf(name, sizeof(name), "rule %u", (index + number) % 100);
        rules[index] = tcp_port_rule(name, RWAY_DENY, 1, 1);
    }
    rules[count - 1] = tcp_port_rule("web", RWAY_ALLOW, 80, 80);
    return rway_filter_table_new(rules, count, RWAY_DENY, NULL);
}

/* Until some loop has gone round once more, so that every swap meets traffic. */
static void await_progress(const uint64_t *progress)
{
    uint64_t before = __atomic_load_n(progress, __ATOMIC_RELAXED);

    while (__atomic_load_n(progress, __ATOMIC_RELAXED) == before)
        sched_yield();
}

static void no_frame_is_lost_from_the_counts_while_tables_are_swapped(void)
{
    struct rway_filter *filter = rway_filter_new();
    struct loop loops[THREADS];
    struct rway_rule_counts sums[9];
    uint64_t progress = 0;
    uint64_t judged = 0;
    uint64_t seen = 0;
    uint32_t count = 0;
    uint32_t in_time = 0;
    bool stop = false;

    EXPECT(rway_filter_replace(filter, table_number(0)) == 0);
    for (uint32_t index = 0; index < THREADS; index++) {
        loops[index] = (struct loop){.filter = filter, .stop = &stop, .progress = &progress};
        EXPECT(pthread_create(&loops[index].thread, NULL, run_loop, &loops[index]) == 0);
    }
    for (uint32_t swap = 1; swap <= SWAPS; swap++) {
        await_progress(&progress);
        /* It fails where a loop has no processor for a second; the counts are right all the same. */
        in_time += rway_filter_replace(filter, table_number(swap)) == 0;
        count = rway_filter_counts(filter, sums, 9);
        EXPECT(count == 2 + swap % 8 && sums[count - 2].frames >= seen);
        seen = sums[count - 2].frames;
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    for (uint32_t index = 0; index < THREADS; index++) {
        pthread_join(loops[index].thread, NULL);
        judged += loops[index].judged;
    }
    rway_filter_counts(filter, sums, 9);
    EXPECT(in_time > 0);
    EXPECT(judged > 0 && sums[count - 2].frames == judged && sums[count - 2].bytes == 60 * judged);
    EXPECT(sums[count - 1].frames == 0);
    rway_filter_free(filter);
}

int main(void)
{
    readers_are_limited_and_their_numbers_used_again();
    a_new_filter_denies_everything();
    counts_follow_the_name_of_a_rule();
    a_reader_that_does_not_come_by_keeps_its_table_and_its_counts();
    no_frame_is_lost_from_the_counts_while_tables_are_swapped();
    return failures != 0;
}
