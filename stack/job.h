/* What a loop runs: jobs, each moving frames from one place to another in bursts. */
#ifndef RWAY_STACK_JOB_H
#define RWAY_STACK_JOB_H

#include "stack.h"

/* What holds for one iteration of a loop, if it has a filter: the table in force, the connections it remembers. */
struct rway_turn {
    const struct rway_filter_table *table;
    struct rway_rule_counts *counts;
    struct rway_unparsed_counts *unparsed;
    struct rway_flow_reader *flows; /* NULL: frames are judged one by one */
};

struct rway_job {
    /* Move what is there, at most RWAY_BURST frames in each direction. Returns how many frames it dealt with. */
    uint32_t (*run)(struct rway_job *job, const struct rway_turn *turn);
    /* Say what to wait for before the loop sleeps. */
    void (*arm)(struct rway_job *job, struct rway_waiter *waiter);
    void (*free)(struct rway_job *job);
};

#endif
