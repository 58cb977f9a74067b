/*
 * Forward frames from one ring to another, past the filter.
 *
 * The bytes judged are the bytes sent: the headers are copied into private memory, judged there, and it is that copy
 * that goes into the out-slot; the rest, which no function has looked at, follows straight from the in-slot. So a
 * peer that rewrites its slot after the verdict changes nothing that was judged, and of a denied frame no byte leaves.
 * Input is released before output is published: whoever dies in between has lost frames, never doubled them.
 *
 * A forwarder never waits for its output, because it would be holding its input's slots: a full ring drops.
 *
 * A burst goes through in phases, so that the cache misses of one frame overlap with those of the next:
 *
 *      peek ─► copy and parse all headers ─► judge all ─► claim all out-slots ─► copy ─► release in, publish out
 *
 * Out is one ring, or, over a spread, several: each has its part of the burst, in the order of the whole.
 */
#include "job.h"
#include "trail.h"

#include <stdlib.h>
#include <string.h>

/* One frame on its way: the private copy of its headers, and what they say. */
struct passage {
    const struct rway_frame *in;
    struct rway_offload offload;
    struct rway_headers parsed;
    uint32_t judged; /* bytes in headers */
    int stopped;     /* enum rway_drop, or PASSES */
    uint8_t headers[RWAY_HEADERS_MAX];
};

enum { PASSES = -1 };

/* What leaves by one out-ring. */
struct way {
    uint32_t count;
    struct rway_frame leaving[RWAY_BURST];
    const struct passage *left_as[RWAY_BURST]; /* of the same index in leaving */
};

struct forward {
    struct rway_job job;
    struct rway_consumer *in;
    struct rway_spread *spread; /* NULL when there is one out-ring */
    uint32_t in_port;
    bool traced;   /* in's producer may spread: it is told what has passed */
    uint32_t runs; /* since the trail was looked at */
    struct rway_trail trail;
    struct rway_frame taken[RWAY_BURST];
    struct passage passages[RWAY_BURST];
    uint32_t way_count;
    struct rway_producer *out[RWAY_QUEUES_MAX]; /* of each way */
    uint8_t way_of[RWAY_QUEUES_MAX];            /* by the spread's queue */
    struct way ways[];
};

static void copy_headers(const struct forward *forward, struct passage *passage)
{
    uint32_t left = passage->in->len < RWAY_HEADERS_MAX ? passage->in->len : RWAY_HEADERS_MAX;
    uint8_t *to = passage->headers;
    struct rway_piece pieces[RWAY_PIECES_MAX];
    passage->judged = left;
    if (passage->in->slots == 1) {
        memcpy(to, passage->in->data, left);
        return;
    }
    rway_consumer_pieces(forward->in, passage->in, pieces);
    for (uint32_t i = 0; left != 0; i++) {
        size_t here = pieces[i].len < left ? pieces[i].len : left;
        memcpy(to, pieces[i].data, here);
        to += here;
        left -= (uint32_t)here;
    }
}

/* Returns PASSES, or the enum rway_drop that stops a frame which cannot be judged. */
static int parse(const struct forward *forward, struct passage *passage)
{
    const struct rway_frame *frame = passage->in;
    copy_headers(forward, passage);
    if (rway_frame_offload(forward->in, frame, &passage->offload) != 0)
        return RWAY_DROP_OFFLOAD;
    if (rway_parse(passage->headers, passage->judged, frame->len, &passage->parsed) != RWAY_WELL_FORMED)
        return RWAY_DROP_MALFORMED;
    /* A tag beside the frame is one more: rway_parse refuses three, which receivers read in different ways. */
    if (frame->flags & RWAY_FLAG_VLAN && passage->parsed.vlan_count > 1)
        return RWAY_DROP_MALFORMED;
    if (passage->offload.flags != 0 && !rway_offload_fits(&passage->parsed, &passage->offload))
        return RWAY_DROP_OFFLOAD;
    return PASSES;
}

static int judge(const struct forward *forward, const struct passage *passage, const struct rway_turn *turn)
{
    if (turn->table == NULL)
        return RWAY_DROP_POLICY; /* no filter, no forwarding */
    if (rway_filter_judge(turn->table, &passage->parsed, forward->in_port, turn->counts, passage->in->len) !=
        RWAY_ALLOW)
        return RWAY_DROP_POLICY;
    return PASSES;
}

/* Copy size bytes that start skip bytes into the source pieces to the same place in the target pieces. */
static void copy_rest(const struct rway_piece *from, const struct rway_piece *to, uint32_t skip, uint32_t size)
{
    size_t in_at = skip, out_at = skip;
    while (in_at >= from->len && size != 0)
        in_at -= from++->len;
    while (out_at >= to->len && size != 0)
        out_at -= to++->len;
    while (size != 0) {
        size_t here = from->len - in_at;
        if (here > to->len - out_at)
            here = to->len - out_at;
        if (here > size)
            here = size;
        memcpy(to->data + out_at, from->data + in_at, here);
        size -= (uint32_t)here;
        if ((in_at += here) == from->len) {
            from++;
            in_at = 0;
        }
        if ((out_at += here) == to->len) {
            to++;
            out_at = 0;
        }
    }
}

static void copy_judged(const struct passage *passage, const struct rway_piece *to)
{
    const uint8_t *from = passage->headers;
    uint32_t left = passage->judged;
    for (; left != 0; to++) {
        size_t here = to->len < left ? to->len : left;
        memcpy(to->data, from, here);
        from += here;
        left -= (uint32_t)here;
    }
}

static uint32_t drop_cause(const struct rway_producer *out, const struct rway_frame *frame)
{
    int unfit = rway_producer_fits(out, frame->len, frame->pushed);
    if (rway_producer_broken(out))
        return RWAY_DROP_DOWN;
    return unfit ? (uint32_t)unfit - 1 : RWAY_DROP_FULL;
}

static struct rway_frame leaving_frame(const struct passage *passage)
{
    return (struct rway_frame){.kind = RWAY_DESC_FRAME,
                               .len = passage->in->len,
                               .vlan = passage->in->vlan,
                               /* That a checksum is good is the peer's word; the next VM is not to take it. */
                               .flags = (passage->in->flags & RWAY_FLAG_VLAN) | RWAY_FLAG_HASH,
                               .hash = rway_flow_hash(&passage->parsed)};
}

/* Find the way for a frame that may pass. One whose flow is held from its queue counts as if that were full. */
static void leave(struct forward *forward, const struct passage *passage)
{
    struct rway_frame frame = leaving_frame(passage);
    uint32_t at = 0;
    if (forward->spread != NULL) {
        int32_t chosen = rway_spread_choose(forward->spread, frame.hash);
        at = forward->way_of[chosen < 0 ? RWAY_SPREAD_HELD - chosen : chosen];
        if (chosen < 0) {
            rway_producer_drop(forward->out[at], RWAY_DROP_FULL, 1);
            return;
        }
    }
    struct way *way = &forward->ways[at];
    way->leaving[way->count] = frame;
    way->left_as[way->count++] = passage;
}

static void note(const struct forward *forward, const struct rway_frame *frame, bool full)
{
    if (forward->spread != NULL)
        rway_spread_note(forward->spread, frame->hash, full);
}

/* Drop a frame that the out-ring did not take, and count it there. */
static void drop_leaving(struct forward *forward, struct way *way, struct rway_producer *out, uint32_t at)
{
    uint32_t cause = drop_cause(out, &way->leaving[at]);
    uint32_t behind = --way->count - at;
    rway_producer_drop(out, cause, 1);
    note(forward, &way->leaving[at], cause == RWAY_DROP_FULL);
    memmove(&way->leaving[at], &way->leaving[at + 1], behind * sizeof way->leaving[0]);
    memmove(&way->left_as[at], &way->left_as[at + 1], behind * sizeof way->left_as[0]);
}

/* Claim out-slots for what leaves. Frames without room are dropped; a shorter one after them may still find some. */
static void claim(struct forward *forward, struct way *way, struct rway_producer *out)
{
    uint32_t claimed = 0;
    while (claimed < way->count) {
        claimed += rway_ring_claim(out, &way->leaving[claimed], way->count - claimed);
        if (claimed < way->count)
            drop_leaving(forward, way, out, claimed);
    }
    for (uint32_t i = 0; i < way->count; i++)
        note(forward, &way->leaving[i], false);
}

static void fill(const struct forward *forward, const struct passage *passage, struct rway_producer *to_ring,
                 struct rway_frame *out)
{
    const struct rway_frame *in = passage->in;
    rway_frame_set_offload(to_ring, out, &passage->offload);
    if (in->slots == 1 && out->slots == 1) {
        memcpy(out->data, passage->headers, passage->judged);
        memcpy(out->data + passage->judged, in->data + passage->judged, in->len - passage->judged);
        return;
    }
    struct rway_piece from[RWAY_PIECES_MAX], to[RWAY_PIECES_MAX];
    rway_consumer_pieces(forward->in, in, from);
    rway_producer_pieces(to_ring, out, to);
    copy_judged(passage, to);
    copy_rest(from, to, passage->judged, in->len - passage->judged);
}

static void claim_and_fill(struct forward *forward)
{
    for (uint32_t k = 0; k < forward->way_count; k++) {
        struct way *way = &forward->ways[k];
        claim(forward, way, forward->out[k]);
        for (uint32_t i = 0; i < way->count; i++)
            fill(forward, way->left_as[i], forward->out[k], &way->leaving[i]);
    }
}

static void publish(struct forward *forward)
{
    for (uint32_t k = 0; k < forward->way_count; k++) {
        rway_ring_publish(forward->out[k], forward->ways[k].leaving, forward->ways[k].count);
        forward->ways[k].count = 0;
    }
}

/* It costs a look at the next consumer's counters, so not at each burst while there is no end of them. */
static void trace(struct forward *forward, uint32_t taken)
{
    enum { RUNS_MAX = 16 };
    if (!forward->traced || (taken != 0 && ++forward->runs < RUNS_MAX))
        return;
    forward->runs = 0;
    rway_trail_step(&forward->trail, forward->in, forward->out, forward->way_count);
}

static uint32_t run(struct rway_job *job, const struct rway_turn *turn)
{
    struct forward *forward = (struct forward *)job;
    uint32_t count = 0;
    uint32_t taken = rway_ring_peek(forward->in, forward->taken, RWAY_BURST);
    for (uint32_t i = 0; i < taken; i++) {
        struct passage *passage = &forward->passages[count];
        if (forward->taken[i].kind == RWAY_DESC_MARK)
            continue;
        passage->in = &forward->taken[i];
        passage->stopped = parse(forward, passage);
        count++;
    }
    if (forward->spread != NULL && count != 0)
        rway_spread_follow(forward->spread);
    for (uint32_t i = 0; i < count; i++) {
        struct passage *passage = &forward->passages[i];
        if (passage->stopped == PASSES)
            passage->stopped = judge(forward, passage, turn);
        if (passage->stopped != PASSES)
            rway_consumer_drop(forward->in, (uint32_t)passage->stopped, 1);
        else
            leave(forward, passage);
    }
    claim_and_fill(forward);
    rway_ring_release(forward->in);
    publish(forward);
    trace(forward, taken);
    return taken;
}

static void arm(struct rway_job *job, struct rway_waiter *waiter)
{
    rway_waiter_add_consumer(waiter, ((struct forward *)job)->in);
}

static void release(struct rway_job *job)
{
    free(job);
}

static struct forward *forward_new(struct rway_consumer *in, uint32_t in_port, uint32_t way_count)
{
    struct forward *forward = calloc(1, sizeof *forward + way_count * sizeof forward->ways[0]);
    if (forward == NULL)
        return NULL;
    forward->job = (struct rway_job){.run = run, .arm = arm, .free = release};
    forward->in = in;
    forward->in_port = in_port;
    forward->way_count = way_count;
    return forward;
}

struct rway_job *rway_forward_new(struct rway_consumer *in, struct rway_producer *out, uint32_t in_port)
{
    struct forward *forward = forward_new(in, in_port, 1);
    if (forward == NULL)
        return NULL;
    forward->out[0] = out;
    forward->traced = rway_consumer_queues(in) > 1;
    return &forward->job;
}

struct rway_job *rway_forward_spread_new(struct rway_consumer *in, struct rway_spread *spread, uint32_t in_port)
{
    uint32_t owned = rway_spread_owned(spread);
    struct forward *forward = forward_new(in, in_port, (uint32_t)__builtin_popcount(owned));
    if (forward == NULL)
        return NULL;
    forward->spread = spread;
    forward->traced = rway_consumer_queues(in) > 1;
    for (uint32_t at = 0; owned != 0; owned &= owned - 1, at++) {
        uint32_t queue = (uint32_t)__builtin_ctz(owned);
        forward->way_of[queue] = (uint8_t)at;
        forward->out[at] = rway_spread_producer(spread, queue);
    }
    return &forward->job;
}
