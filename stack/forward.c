/*
 * Forward frames from one ring to another, past the filter.
 *
 * The bytes judged are the bytes sent: the headers are copied into private memory, judged there, and it is that copy
 * that goes into the out-slot; the rest, which no function has looked at, follows straight from the in-slot. So a
 * peer that rewrites its slot after the verdict changes nothing that was judged, and of a denied frame no byte leaves.
 * Input is released before output is published: whoever dies in between has lost frames, never doubled them.
 *
 * Where all that comes in goes out by one ring, frames wait for room in it: those that do not fit are left in the
 * in-ring, unjudged, so that none is judged twice, and the pressure goes back to who sent them (patience.h says for how
 * long), who is told how far away the reason lies. It is the job that waits and not its thread: the loop's other jobs
 * go on, and the loop sleeps on the room as it does on frames. Over a spread, or into a ring that several inputs share,
 * one slow output would hold up the others, or one input the others: there a full ring drops.
 *
 * A burst goes through in phases, so that the cache misses of one frame overlap with those of the next:
 *
 *      peek what fits ─► copy and parse headers ─► judge all ─► claim all out-slots ─► copy ─► release in, publish out
 *
 * Out is one ring, or, over a spread, several: each has its part of the burst, in the order of the whole.
 */
#include "judge.h"
#include "passage.h"
#include "patience.h"

#include <stdlib.h>
#include <string.h>

/* What leaves by one out-ring. */
struct way {
    uint32_t count;
    struct rway_frame leaving[RWAY_BURST];
    const struct rway_passage *left_as[RWAY_BURST]; /* of the same index in leaving */
};

struct forward {
    struct rway_job job;
    const struct rway_judge *judge; /* of this turn */
    struct rway_consumer *in;
    struct rway_spread *spread; /* NULL when there is one out-ring */
    uint32_t in_port;
    uint32_t out_port;
    struct rway_patience patience; /* with a full out-ring; for the one way that there is */
    uint32_t wanted;               /* slots of the out-ring for the first frame left in the in-ring; 0: none is left */
    struct rway_frame taken[RWAY_BURST];
    struct rway_passage passages[RWAY_BURST];
    struct rway_judged judged[RWAY_BURST]; /* where connections are remembered */
    uint32_t way_count;
    struct rway_producer *out[RWAY_QUEUES_MAX]; /* of each way */
    uint8_t way_of[RWAY_QUEUES_MAX];            /* by the spread's queue */
    struct way ways[];
};

static int judge_alone(const struct forward *forward, const struct rway_passage *passage)
{
    const struct rway_judge *judge = forward->judge;
    if (judge->table == NULL)
        return RWAY_DROP_POLICY; /* no filter, no forwarding */
    int action = rway_filter_judge(judge->table, &passage->parsed, forward->in_port, judge->counts, passage->in->len);
    return action == RWAY_ALLOW ? RWAY_PASSES : RWAY_DROP_POLICY;
}

/* A burst at once, so that the fetches from a table of connections overlap. */
static void judge_together(struct forward *forward, uint32_t count)
{
    uint32_t judged = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct rway_passage *passage = &forward->passages[i];
        if (passage->stopped == RWAY_PASSES)
            forward->judged[judged++] =
                (struct rway_judged){.bytes = passage->headers,
                                     .headers = &passage->parsed,
                                     .copied = passage->judged,
                                     .frame_len = passage->in->len,
                                     .vlan = passage->in->flags & RWAY_FLAG_VLAN ? passage->in->vlan : 0};
    }
    rway_flow_judge(forward->judge->flows, forward->in_port, forward->out_port, forward->judged, judged);
    for (uint32_t i = count; i-- != 0;)
        if (forward->passages[i].stopped == RWAY_PASSES)
            forward->passages[i].stopped = forward->judged[--judged].stopped;
}

/* Frames with headers that cannot be judged: no rule sees them, whatever becomes of them. */
static void judge_unparsed(struct forward *forward, uint32_t count)
{
    const struct rway_judge *judge = forward->judge;
    for (uint32_t i = 0; i < count; i++) {
        struct rway_passage *passage = &forward->passages[i];
        if (passage->malformed != RWAY_WELL_FORMED && judge->table != NULL)
            passage->stopped = rway_filter_judge_unparsed(judge->table, passage->malformed, judge->unparsed);
    }
}

static void judge_parsed(struct forward *forward, uint32_t count)
{
    if (forward->judge->flows != NULL) {
        judge_together(forward, count);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        if (forward->passages[i].stopped == RWAY_PASSES)
            forward->passages[i].stopped = judge_alone(forward, &forward->passages[i]);
}

static void judge(struct forward *forward, uint32_t count)
{
    judge_parsed(forward, count);
    judge_unparsed(forward, count); /* after it, so that what passes here is no more to be judged */
}

static uint32_t drop_cause(const struct rway_producer *out, const struct rway_frame *frame)
{
    int unfit = rway_producer_fits(out, frame->len, frame->pushed);
    if (rway_producer_broken(out))
        return RWAY_DROP_DOWN;
    return unfit ? (uint32_t)unfit - 1 : RWAY_DROP_FULL;
}

static struct rway_frame leaving_frame(const struct rway_passage *passage)
{
    return (struct rway_frame){.kind = RWAY_DESC_FRAME,
                               .len = passage->in->len,
                               .vlan = passage->in->flags & RWAY_FLAG_VLAN ? passage->in->vlan : 0,
                               /* A good checksum, a flow hash: the peer's words, which the next VM is not to take. */
                               .flags = passage->in->flags & RWAY_FLAG_VLAN};
}

/* Find the way for a frame that may pass. */
static void leave(struct forward *forward, const struct rway_passage *passage)
{
    struct rway_frame frame = leaving_frame(passage);
    uint32_t at = 0;
    if (forward->spread != NULL) {
        frame.flags |= RWAY_FLAG_HASH;
        frame.hash = rway_flow_hash(&passage->parsed);
        at = forward->way_of[rway_spread_choose(forward->spread, frame.hash)];
    }
    struct way *way = &forward->ways[at];
    way->leaving[way->count] = frame;
    way->left_as[way->count++] = passage;
}

/* Drop a frame that the out-ring did not take, and count it there. */
static void drop_leaving(struct way *way, struct rway_producer *out, uint32_t at)
{
    uint32_t behind = --way->count - at;
    rway_producer_drop(out, drop_cause(out, &way->leaving[at]), 1);
    memmove(&way->leaving[at], &way->leaving[at + 1], behind * sizeof way->leaving[0]);
    memmove(&way->left_as[at], &way->left_as[at + 1], behind * sizeof way->left_as[0]);
}

/* Claim out-slots for what leaves. Frames without room are dropped; a shorter one after them may still find some. */
static void claim(struct way *way, struct rway_producer *out)
{
    uint32_t claimed = 0;
    while (claimed < way->count) {
        claimed += rway_ring_claim(out, &way->leaving[claimed], way->count - claimed);
        if (claimed < way->count)
            drop_leaving(way, out, claimed);
    }
}

static void claim_and_fill(struct forward *forward)
{
    for (uint32_t k = 0; k < forward->way_count; k++) {
        struct way *way = &forward->ways[k];
        claim(way, forward->out[k]);
        for (uint32_t i = 0; i < way->count; i++)
            rway_passage_fill(way->left_as[i], forward->in, forward->out[k], &way->leaving[i]);
    }
}

/* The loop comes back at once, and with nothing more to publish this settles what was put off. */
static void publish(struct forward *forward)
{
    for (uint32_t k = 0; k < forward->way_count; k++) {
        rway_ring_publish_more(forward->out[k], forward->ways[k].leaving, forward->ways[k].count);
        forward->ways[k].count = 0;
    }
}

/* Frames to deal with in this turn; the others stay where they are. */
static uint32_t take(struct forward *forward)
{
    uint32_t peeked = rway_ring_peek(forward->in, forward->taken, RWAY_BURST);
    uint32_t taken = rway_patience_admit(&forward->patience, forward->out[0], forward->taken, peeked);
    const struct rway_frame *left = &forward->taken[taken];
    forward->wanted = 0;
    if (__builtin_expect(taken != peeked, 0)) {
        forward->wanted = rway_producer_slots(forward->out[0], left->len, 0);
        rway_consumer_put_back(forward->in, left, peeked - taken);
    }
    return taken;
}

static uint32_t run(struct rway_job *job)
{
    struct forward *forward = (struct forward *)job;
    uint32_t count = 0;
    uint32_t taken = take(forward);
    for (uint32_t i = 0; i < taken; i++)
        if (forward->taken[i].kind != RWAY_DESC_MARK)
            rway_passage_open(&forward->passages[count++], forward->in, &forward->taken[i]);
    judge(forward, count);
    if (forward->spread != NULL && count != 0)
        rway_spread_follow(forward->spread);
    for (uint32_t i = 0; i < count; i++) {
        const struct rway_passage *passage = &forward->passages[i];
        if (passage->stopped != RWAY_PASSES)
            rway_consumer_drop(forward->in, (uint32_t)passage->stopped, 1);
        else
            leave(forward, passage);
    }
    claim_and_fill(forward);
    rway_ring_release_more(forward->in);
    rway_consumer_stall(forward->in, forward->patience.depth);
    publish(forward);
    return taken;
}

static void arm(struct rway_job *job, struct rway_waiter *waiter)
{
    struct forward *forward = (struct forward *)job;
    if (forward->wanted != 0)
        rway_waiter_add_producer(waiter, forward->out[0], forward->wanted);
    else
        rway_waiter_add_consumer(waiter, forward->in);
}

static void release(struct rway_job *job)
{
    struct forward *forward = (struct forward *)job;
    rway_consumer_settle(forward->in);
    rway_consumer_stall(forward->in, 0);
    for (uint32_t k = 0; k < forward->way_count; k++)
        rway_producer_settle(forward->out[k]);
    free(forward);
}

static struct forward *forward_new(const struct rway_judge *judge, struct rway_consumer *in, uint32_t in_port,
                                   uint32_t out_port, uint32_t way_count)
{
    struct forward *forward = calloc(1, sizeof *forward + way_count * sizeof forward->ways[0]);
    if (forward == NULL)
        return NULL;
    forward->job = (struct rway_job){.run = run, .arm = arm, .free = release};
    forward->judge = judge;
    forward->in = in;
    forward->in_port = in_port;
    forward->out_port = out_port;
    forward->way_count = way_count;
    return forward;
}

struct rway_job *rway_forward_new(struct rway_judge *judge, struct rway_consumer *in, struct rway_producer *out,
                                  uint32_t in_port, uint32_t out_port, uint64_t patience_us)
{
    struct forward *forward = forward_new(judge, in, in_port, out_port, 1);
    if (forward == NULL)
        return NULL;
    rway_patience_set(&forward->patience, patience_us);
    forward->out[0] = out;
    return &forward->job;
}

void rway_forward_wait(struct rway_job *job, uint64_t patience_us)
{
    rway_patience_set(&((struct forward *)job)->patience, patience_us);
}

struct rway_job *rway_forward_spread_new(struct rway_judge *judge, struct rway_consumer *in, struct rway_spread *spread,
                                         uint32_t in_port, uint32_t out_port)
{
    uint32_t owned = rway_spread_owned(spread);
    struct forward *forward = forward_new(judge, in, in_port, out_port, (uint32_t)__builtin_popcount(owned));
    if (forward == NULL)
        return NULL;
    forward->spread = spread;
    for (uint32_t at = 0; owned != 0; owned &= owned - 1, at++) {
        uint32_t queue = (uint32_t)__builtin_ctz(owned);
        forward->way_of[queue] = (uint8_t)at;
        forward->out[at] = rway_spread_producer(spread, queue);
    }
    return &forward->job;
}
