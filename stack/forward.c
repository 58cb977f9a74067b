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
 */
#include "job.h"

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

struct forward {
    struct rway_job job;
    struct rway_consumer *in;
    struct rway_producer *out;
    uint32_t in_port;
    struct rway_frame taken[RWAY_BURST];
    struct passage passages[RWAY_BURST];
    struct rway_frame leaving[RWAY_BURST];
    const struct passage *left_as[RWAY_BURST]; /* of the same index in leaving */
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
                               .flags = passage->in->flags & (RWAY_FLAG_VLAN | RWAY_FLAG_HASH),
                               .hash = passage->in->hash};
}

/* Drop a frame that the out-ring did not take, and count it there. */
static void drop_leaving(struct forward *forward, uint32_t at, uint32_t count)
{
    rway_producer_drop(forward->out, drop_cause(forward->out, &forward->leaving[at]), 1);
    memmove(&forward->leaving[at], &forward->leaving[at + 1], (count - at - 1) * sizeof forward->leaving[0]);
    memmove(&forward->left_as[at], &forward->left_as[at + 1], (count - at - 1) * sizeof forward->left_as[0]);
}

/* Claim out-slots for what leaves. Frames without room are dropped; a shorter one after them may still find some. */
static uint32_t claim(struct forward *forward, uint32_t count)
{
    uint32_t claimed = 0;
    while (claimed < count) {
        claimed += rway_ring_claim(forward->out, &forward->leaving[claimed], count - claimed);
        if (claimed < count)
            drop_leaving(forward, claimed, count--);
    }
    return count;
}

static void fill(const struct forward *forward, const struct passage *passage, struct rway_frame *out)
{
    const struct rway_frame *in = passage->in;
    rway_frame_set_offload(forward->out, out, &passage->offload);
    if (in->slots == 1 && out->slots == 1) {
        memcpy(out->data, passage->headers, passage->judged);
        memcpy(out->data + passage->judged, in->data + passage->judged, in->len - passage->judged);
        return;
    }
    struct rway_piece from[RWAY_PIECES_MAX], to[RWAY_PIECES_MAX];
    rway_consumer_pieces(forward->in, in, from);
    rway_producer_pieces(forward->out, out, to);
    copy_judged(passage, to);
    copy_rest(from, to, passage->judged, in->len - passage->judged);
}

static uint32_t run(struct rway_job *job, const struct rway_turn *turn)
{
    struct forward *forward = (struct forward *)job;
    uint32_t count = 0, leaving = 0;
    uint32_t taken = rway_ring_peek(forward->in, forward->taken, RWAY_BURST);
    for (uint32_t i = 0; i < taken; i++) {
        struct passage *passage = &forward->passages[count];
        if (forward->taken[i].kind == RWAY_DESC_MARK)
            continue;
        passage->in = &forward->taken[i];
        passage->stopped = parse(forward, passage);
        count++;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct passage *passage = &forward->passages[i];
        if (passage->stopped == PASSES)
            passage->stopped = judge(forward, passage, turn);
        if (passage->stopped != PASSES) {
            rway_consumer_drop(forward->in, (uint32_t)passage->stopped, 1);
            continue;
        }
        forward->leaving[leaving] = leaving_frame(passage);
        forward->left_as[leaving++] = passage;
    }
    leaving = claim(forward, leaving);
    for (uint32_t i = 0; i < leaving; i++)
        fill(forward, forward->left_as[i], &forward->leaving[i]);
    rway_ring_release(forward->in);
    rway_ring_publish(forward->out, forward->leaving, leaving);
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

struct rway_job *rway_forward_new(struct rway_consumer *in, struct rway_producer *out, uint32_t in_port)
{
    struct forward *forward = calloc(1, sizeof *forward);
    if (forward == NULL)
        return NULL;
    *forward = (struct forward){.job = {.run = run, .arm = arm, .free = release},
                                .in = in,
                                .out = out,
                                .in_port = in_port};
    return &forward->job;
}
