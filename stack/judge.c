/* See judge.h. Between a turn and the rest that follows it, the table stays; see filter.c. */
#define _GNU_SOURCE
#include "judge.h"

#include <stdlib.h>
#include <time.h>

/* Of the last timer tick: cheap enough for each turn, and time-outs are counted in seconds. */
static uint32_t coarse_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint32_t)now.tv_sec;
}

static void turn(struct rway_hook *hook)
{
    struct rway_judge *judge = (struct rway_judge *)hook;
    judge->table = rway_filter_enter(judge->filter, judge->reader, &judge->counts);
    if (judge->flows != NULL)
        rway_flow_turn(judge->flows, judge->table, judge->counts, coarse_seconds());
}

static void rest(struct rway_hook *hook)
{
    struct rway_judge *judge = (struct rway_judge *)hook;
    rway_filter_leave(judge->filter, judge->reader);
}

static void judge_free(struct rway_hook *hook)
{
    struct rway_judge *judge = (struct rway_judge *)hook;
    rway_filter_reader_remove(judge->filter, judge->reader);
    free(judge);
}

struct rway_judge *rway_judge_new(struct rway_filter *filter)
{
    struct rway_judge *judge = calloc(1, sizeof *judge);
    int reader = judge != NULL ? rway_filter_reader_add(filter) : -1;
    if (reader < 0) {
        free(judge);
        return NULL;
    }
    *judge = (struct rway_judge){.hook = {.turn = turn, .rest = rest, .free = judge_free},
                                 .filter = filter,
                                 .reader = (uint32_t)reader,
                                 .unparsed = rway_filter_unparsed(filter, (uint32_t)reader),
                                 .flows = rway_filter_flows(filter, (uint32_t)reader)};
    return judge;
}

struct rway_hook *rway_judge_hook(struct rway_judge *judge)
{
    return &judge->hook;
}
