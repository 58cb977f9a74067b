/*
 * Forward frames from one ring to another, past the filter.
 *
 * The bytes judged are the bytes sent: the headers are copied into private memory, judged there, and it is that copy
 * that goes into the out-slot; the rest, which no function has looked at, follows straight from the in-slot. So a
 * peer that rewrites its slot after the verdict changes nothing that was judged, and of a denied frame no byte leaves.
 * Input is released before output is published: whoever dies in between has lost frames, never doubled them.
 *
 * A forwarder never waits for its output, because it would be holding its input's slots: a full ring drops.
 */
#include "job.h"

#include <stdlib.h>
#include <string.h>

struct forward {
    struct rway_job job;
    struct rway_consumer *in;
    struct rway_producer *out;
    uint32_t in_port;
};

/* One frame on its way: where its bytes come from, and the private copy of its headers. */
struct passage {
    struct rway_frame frame;
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t judged; /* bytes in headers */
    uint8_t headers[RWAY_HEADERS_MAX];
    struct rway_offload offload;
};

static void copy_headers(struct passage *passage)
{
    uint32_t left = passage->frame.len < RWAY_HEADERS_MAX ? passage->frame.len : RWAY_HEADERS_MAX;
    uint8_t *to = passage->headers;
    passage->judged = left;
    for (uint32_t i = 0; left != 0; i++) {
        size_t here = passage->pieces[i].len < left ? passage->pieces[i].len : left;
        memcpy(to, passage->pieces[i].data, here);
        to += here;
        left -= (uint32_t)here;
    }
}

/* Returns -1 to let it pass, or the enum rway_drop that stops it. */
static int judge(const struct forward *forward, struct passage *passage, const struct rway_turn *turn)
{
    struct rway_headers headers;
    if (rway_frame_offload(forward->in, &passage->frame, &passage->offload) != 0)
        return RWAY_DROP_OFFLOAD;
    if (rway_parse(passage->headers, passage->judged, passage->frame.len, &headers) != RWAY_WELL_FORMED)
        return RWAY_DROP_MALFORMED;
    /* A tag beside the frame is one more: rway_parse refuses three, which receivers read in different ways. */
    if (passage->frame.flags & RWAY_FLAG_VLAN && headers.vlan_count > 1)
        return RWAY_DROP_MALFORMED;
    if (passage->offload.flags != 0 && !rway_offload_fits(&headers, &passage->offload))
        return RWAY_DROP_OFFLOAD;
    if (turn->table == NULL)
        return RWAY_DROP_POLICY; /* no filter, no forwarding */
    if (rway_filter_judge(turn->table, &headers, forward->in_port, turn->counts, passage->frame.len) != RWAY_ALLOW)
        return RWAY_DROP_POLICY;
    return -1;
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

/* Claim an out-slot and fill it. False: dropped and counted at the out-ring. */
static bool pass(struct forward *forward, const struct passage *passage, struct rway_frame *out)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    *out = (struct rway_frame){.kind = RWAY_DESC_FRAME,
                               .len = passage->frame.len,
                               .vlan = passage->frame.vlan,
                               /* That a checksum is good is the peer's word; the next VM is not to take it. */
                               .flags = passage->frame.flags & (RWAY_FLAG_VLAN | RWAY_FLAG_HASH),
                               .hash = passage->frame.hash};
    if (rway_ring_claim(forward->out, out, 1) == 0) {
        rway_producer_drop(forward->out, drop_cause(forward->out, out), 1);
        return false;
    }
    rway_frame_set_offload(forward->out, out, &passage->offload);
    rway_producer_pieces(forward->out, out, pieces);
    copy_judged(passage, pieces);
    copy_rest(passage->pieces, pieces, passage->judged, passage->frame.len - passage->judged);
    return true;
}

static uint32_t run(struct rway_job *job, const struct rway_turn *turn)
{
    struct forward *forward = (struct forward *)job;
    struct rway_frame in[RWAY_BURST], out[RWAY_BURST];
    struct passage passage;
    uint32_t passed = 0;
    uint32_t taken = rway_ring_peek(forward->in, in, RWAY_BURST);
    for (uint32_t i = 0; i < taken; i++) {
        if (in[i].kind == RWAY_DESC_MARK)
            continue;
        passage.frame = in[i];
        rway_consumer_pieces(forward->in, &in[i], passage.pieces);
        copy_headers(&passage);
        int stopped = judge(forward, &passage, turn);
        if (stopped >= 0)
            rway_consumer_drop(forward->in, (uint32_t)stopped, 1);
        else if (pass(forward, &passage, &out[passed]))
            passed++;
    }
    rway_ring_release(forward->in);
    rway_ring_publish(forward->out, out, passed);
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
