/* Copies of a frame's headers to be judged, and of a judged frame into its out-slot. */
#include "passage.h"
#include "short_copy.h"

#include <string.h>

static __attribute__((noinline)) void gather_headers(const struct rway_consumer *in, struct rway_passage *passage)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t left = passage->judged;
    uint8_t *to = passage->headers;
    rway_consumer_pieces(in, passage->in, pieces);
    for (uint32_t i = 0; left != 0; i++) {
        size_t here = pieces[i].len < left ? pieces[i].len : left;
        memcpy(to, pieces[i].data, here);
        to += here;
        left -= (uint32_t)here;
    }
}

/* Two lines hold the headers of nearly all frames; for others it is done again with all that may be judged. */
enum { HEADERS_USUAL = 128, SHORT_MAX = 256, VLAN_ID = 0x0fff };

static void copy_headers(const struct rway_consumer *in, struct rway_passage *passage, uint32_t most)
{
    passage->judged = passage->in->len < most ? passage->in->len : most;
    if (__builtin_expect(passage->in->slots == 1, 1))
        rway_copy_short(passage->headers, passage->in->data, passage->judged);
    else
        gather_headers(in, passage);
}

/* Headers that go on; an ICMP error, whose embedded packet tells which connection it is about. */
static bool wants_more(int cause, const struct rway_headers *parsed)
{
    return cause == RWAY_MALFORMED_TOO_LONG ||
           (parsed->ip_version != 0 && (parsed->protocol == IPPROTO_ICMP || parsed->protocol == IPPROTO_ICMPV6));
}

/* Returns RWAY_PASSES, or the enum rway_drop that stops a frame which cannot be judged. */
static int parse(struct rway_passage *passage, const struct rway_consumer *in)
{
    const struct rway_frame *frame = passage->in;
    passage->malformed = RWAY_WELL_FORMED;
    copy_headers(in, passage, HEADERS_USUAL);
    if (rway_frame_offload(in, frame, &passage->offload) != 0)
        return RWAY_DROP_OFFLOAD;
    int cause = rway_parse(passage->headers, passage->judged, frame->len, &passage->parsed);
    if (__builtin_expect(frame->len > passage->judged && wants_more(cause, &passage->parsed), 0)) {
        copy_headers(in, passage, RWAY_HEADERS_MAX);
        cause = rway_parse(passage->headers, passage->judged, frame->len, &passage->parsed);
    }
    /* A tag beside the frame is one more: rway_parse refuses three, which receivers read in different ways. */
    if (cause == RWAY_WELL_FORMED && frame->flags & RWAY_FLAG_VLAN && passage->parsed.vlan_count > 1)
        cause = RWAY_MALFORMED_VLAN;
    passage->malformed = cause;
    if (cause != RWAY_WELL_FORMED)
        return RWAY_DROP_MALFORMED;
    if (frame->flags & RWAY_FLAG_VLAN && (frame->vlan & VLAN_ID) != 0)
        passage->parsed.vlan = frame->vlan & VLAN_ID;
    if (passage->offload.flags != 0 && !rway_offload_fits(&passage->parsed, &passage->offload))
        return RWAY_DROP_OFFLOAD;
    return RWAY_PASSES;
}

void rway_passage_open(struct rway_passage *passage, const struct rway_consumer *in, const struct rway_frame *frame)
{
    passage->in = frame;
    passage->stopped = parse(passage, in);
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

static void copy_judged(const struct rway_passage *passage, const struct rway_piece *to)
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

static __attribute__((noinline)) void fill_pieces(const struct rway_passage *passage, const struct rway_consumer *in,
                                                  const struct rway_producer *out, const struct rway_frame *to)
{
    struct rway_piece from_pieces[RWAY_PIECES_MAX], to_pieces[RWAY_PIECES_MAX];
    rway_consumer_pieces(in, passage->in, from_pieces);
    rway_producer_pieces(out, to, to_pieces);
    copy_judged(passage, to_pieces);
    copy_rest(from_pieces, to_pieces, passage->judged, passage->in->len - passage->judged);
}

void rway_passage_fill(const struct rway_passage *passage, const struct rway_consumer *in,
                       const struct rway_producer *out, struct rway_frame *to)
{
    const struct rway_frame *from = passage->in;
    if (passage->offload.flags != 0)
        rway_frame_set_offload(out, to, &passage->offload);
    if (__builtin_expect(from->slots != 1 || to->slots != 1, 0)) {
        fill_pieces(passage, in, out, to);
        return;
    }
    uint32_t rest = from->len - passage->judged;
    rway_copy_short(to->data, passage->headers, passage->judged);
    if (rest <= SHORT_MAX)
        rway_copy_short(to->data + passage->judged, from->data + passage->judged, rest);
    else
        memcpy(to->data + passage->judged, from->data + passage->judged, rest);
}
