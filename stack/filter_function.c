/*
 * The filter and connection tracking as packet functions. Both judge by the rules of one struct rway_filter, which all
 * loops share; the second asks them only over what no known connection decides.
 */
#define _GNU_SOURCE
#include "pipeline.h"

#include <stdlib.h>

/* Of one loop: what holds for this turn. Between a turn and the rest that follows it, the table stays: filter.c. */
struct judge {
    struct rway_filter *filter;
    uint32_t reader;
    const struct rway_filter_table *table;
    struct rway_rule_counts *counts;
    struct rway_unparsed_counts *unparsed;
    struct rway_conntrack_reader *conntrack;
    struct rway_judged judged[RWAY_BURST];
};

static void *judge_start(const struct rway_function_start *start)
{
    struct rway_filter *filter = start->owner;
    struct judge *judge = calloc(1, sizeof *judge);
    int reader = judge != NULL ? rway_filter_reader_add(filter) : -1;
    if (reader < 0) {
        free(judge);
        return NULL;
    }
    judge->filter = filter;
    judge->reader = (uint32_t)reader;
    judge->unparsed = rway_filter_unparsed(filter, judge->reader);
    judge->conntrack = rway_filter_conntrack(filter, judge->reader);
    return judge;
}

static void judge_stop(void *state)
{
    struct judge *judge = state;
    rway_filter_reader_remove(judge->filter, judge->reader);
    free(judge);
}

static void filter_turn(void *state, uint64_t now_ns)
{
    struct judge *judge = state;
    (void)now_ns;
    judge->table = rway_filter_enter(judge->filter, judge->reader, &judge->counts);
}

/* Time-outs are counted in seconds. */
static void conntrack_turn(void *state, uint64_t now_ns)
{
    struct judge *judge = state;
    filter_turn(state, now_ns);
    rway_conntrack_turn(judge->conntrack, judge->table, judge->counts, (uint32_t)(now_ns / 1000000000u));
}

static void judge_rest(void *state)
{
    struct judge *judge = state;
    rway_filter_leave(judge->filter, judge->reader);
}

/* No rule sees a packet that cannot be judged, whatever becomes of it. */
static void judge_unparsed(const struct judge *judge, struct rway_packet *packet)
{
    if (rway_filter_judge_unparsed(judge->table, packet->malformed, judge->unparsed) == RWAY_PASSES)
        packet->verdict = RWAY_VERDICT_NEXT;
    else
        rway_packet_drop(packet, RWAY_DROP_MALFORMED);
}

static void filter_burst(void *state, struct rway_packet *const *packets, uint32_t count)
{
    const struct judge *judge = state;
    for (uint32_t i = 0; i < count; i++) {
        struct rway_packet *packet = packets[i];
        if (__builtin_expect(packet->malformed != RWAY_WELL_FORMED, 0))
            judge_unparsed(judge, packet);
        else if (rway_filter_judge(judge->table, &packet->headers, packet->in_port, judge->counts, packet->len) !=
                 RWAY_ALLOW)
            rway_packet_drop(packet, RWAY_DROP_POLICY);
    }
}

/* Packets between the same two ports, together, so that the fetches from the table of connections overlap. */
static void judge_run(struct judge *judge, struct rway_packet *const *packets, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        judge->judged[i] = (struct rway_judged){.bytes = packets[i]->bytes,
                                                .headers = &packets[i]->headers,
                                                .copied = packets[i]->private_len,
                                                .frame_len = packets[i]->len,
                                                .vlan = packets[i]->vlan};
    rway_conntrack_judge(judge->conntrack, packets[0]->in_port, packets[0]->peer_port, judge->judged, count);
    for (uint32_t i = 0; i < count; i++)
        if (judge->judged[i].stopped != RWAY_PASSES)
            rway_packet_drop(packets[i], (enum rway_drop)judge->judged[i].stopped);
}

static bool goes_along(const struct rway_packet *packet, const struct rway_packet *first)
{
    return packet->malformed == RWAY_WELL_FORMED && packet->in_port == first->in_port &&
           packet->peer_port == first->peer_port;
}

static void conntrack_burst(void *state, struct rway_packet *const *packets, uint32_t count)
{
    struct judge *judge = state;
    uint32_t next;
    for (uint32_t at = 0; at < count; at = next) {
        next = at + 1;
        if (__builtin_expect(packets[at]->malformed != RWAY_WELL_FORMED, 0)) {
            judge_unparsed(judge, packets[at]);
            continue;
        }
        while (next < count && next - at < RWAY_BURST && goes_along(packets[next], packets[at]))
            next++;
        judge_run(judge, &packets[at], next - at);
    }
}

static const struct rway_function FILTER = {
    .version = RWAY_FUNCTION_VERSION,
    .flags = RWAY_FUNCTION_UNPARSED,
    .start = judge_start,
    .stop = judge_stop,
    .turn = filter_turn,
    .rest = judge_rest,
    .burst = filter_burst,
};

static const struct rway_function CONNTRACK = {
    .version = RWAY_FUNCTION_VERSION,
    .flags = RWAY_FUNCTION_UNPARSED,
    .start = judge_start,
    .stop = judge_stop,
    .turn = conntrack_turn,
    .rest = judge_rest,
    .burst = conntrack_burst,
};

const struct rway_function *rway_filter_function(struct rway_filter *filter)
{
    return rway_filter_conntrack(filter, 0) != NULL ? &CONNTRACK : &FILTER;
}
