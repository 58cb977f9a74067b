/* What holds for one turn of a loop: the rule table in force, and the connections that the filter remembers. */
#ifndef RWAY_STACK_JUDGE_H
#define RWAY_STACK_JUDGE_H

#include "stack.h"

struct rway_judge {
    struct rway_hook hook;
    struct rway_filter *filter;
    uint32_t reader;
    const struct rway_filter_table *table;
    struct rway_rule_counts *counts;
    struct rway_unparsed_counts *unparsed;
    struct rway_flow_reader *flows; /* NULL: frames are judged one by one */
};

#endif
