/* Copies of a frame's headers to be judged, and of a judged packet into its out-slot. */
#include "packet.h"
#include "short_copy.h"

static __attribute__((noinline)) void gather_headers(const struct rway_consumer *in, struct rway_packet *packet)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t left = packet->private_len;
    uint8_t *to = packet->bytes;
    rway_consumer_pieces(in, packet->in, pieces);
    for (uint32_t i = 0; left != 0; i++) {
        size_t here = pieces[i].len < left ? pieces[i].len : left;
        memcpy(to, pieces[i].data, here);
        to += here;
        left -= (uint32_t)here;
    }
}

/* Two lines hold the headers of nearly all frames; for others it is done again with all that may be judged. */
enum { HEADERS_USUAL = 128, SHORT_MAX = 256, VLAN_ID = 0x0fff };

static void copy_headers(const struct rway_consumer *in, struct rway_packet *packet, uint32_t most)
{
    packet->private_len = packet->in->len < most ? packet->in->len : most;
    if (__builtin_expect(packet->in->slots == 1, 1))
        rway_copy_short(packet->bytes, packet->in->data, packet->private_len);
    else
        gather_headers(in, packet);
}

/* Headers that go on; an ICMP error, whose embedded packet tells which connection it is about. */
static bool wants_more(int cause, const struct rway_headers *parsed)
{
    return cause == RWAY_MALFORMED_TOO_LONG ||
           (parsed->ip_version != 0 && (parsed->protocol == IPPROTO_ICMP || parsed->protocol == IPPROTO_ICMPV6));
}

static void parse_headers(struct rway_packet *packet, const struct rway_consumer *in)
{
    const struct rway_frame *frame = packet->in;
    copy_headers(in, packet, HEADERS_USUAL);
    packet->offload = (struct rway_offload){0};
    if (frame->flags & RWAY_FLAG_EXTENSION && rway_frame_offload(in, frame, &packet->offload) != 0) {
        rway_packet_drop(packet, RWAY_DROP_OFFLOAD);
        return;
    }
    int cause = rway_parse(packet->bytes, packet->private_len, frame->len, &packet->headers);
    if (__builtin_expect(frame->len > packet->private_len && wants_more(cause, &packet->headers), 0)) {
        copy_headers(in, packet, RWAY_HEADERS_MAX);
        cause = rway_parse(packet->bytes, packet->private_len, frame->len, &packet->headers);
    }
    /* A tag beside the frame is one more: rway_parse refuses three, which receivers read in different ways. */
    if (cause == RWAY_WELL_FORMED && packet->tagged && packet->headers.vlan_count > 1)
        cause = RWAY_MALFORMED_VLAN;
    packet->malformed = (uint8_t)cause;
    if (cause != RWAY_WELL_FORMED) {
        packet->verdict = RWAY_VERDICT_UNPARSED;
        return;
    }
    if (packet->tagged && (packet->vlan & VLAN_ID) != 0)
        packet->headers.vlan = packet->vlan & VLAN_ID;
    if (packet->offload.flags != 0 && !rway_offload_fits(&packet->headers, &packet->offload))
        rway_packet_drop(packet, RWAY_DROP_OFFLOAD);
}

void rway_packet_open(struct rway_packet *packet, const struct rway_consumer *in, const struct rway_frame *frame)
{
    packet->in = frame;
    packet->bytes = packet->room + RWAY_PUSH_MAX;
    packet->len = frame->len;
    packet->tagged = (frame->flags & RWAY_FLAG_VLAN) != 0;
    packet->vlan = packet->tagged ? frame->vlan : 0;
    packet->verdict = RWAY_VERDICT_NEXT;
    packet->malformed = RWAY_WELL_FORMED;
    packet->hashed = 0;
    packet->hash = 0;
    parse_headers(packet, in);
    packet->skip = packet->private_len;
}

uint8_t *rway_packet_push(struct rway_packet *packet, uint32_t at, uint32_t len)
{
    if (at > packet->private_len || len > (uint32_t)(packet->bytes - packet->room))
        return NULL;
    memmove(packet->bytes - len, packet->bytes, at);
    packet->bytes -= len;
    packet->private_len += len;
    packet->len += len;
    rway_packet_shift(packet, (int32_t)len);
    return packet->bytes + at;
}

int rway_packet_pull(struct rway_packet *packet, uint32_t at, uint32_t len)
{
    if (at > packet->private_len || len > packet->private_len - at)
        return -1;
    memmove(packet->bytes + len, packet->bytes, at);
    packet->bytes += len;
    packet->private_len -= len;
    packet->len -= len;
    rway_packet_shift(packet, -(int32_t)len);
    return 0;
}

/* Copy size bytes that start in_at bytes into the source pieces to out_at bytes into the target pieces. */
static void copy_rest(const struct rway_piece *from, const struct rway_piece *to, size_t in_at, size_t out_at,
                      uint32_t size)
{
    while (size != 0 && in_at >= from->len)
        in_at -= from++->len;
    while (size != 0 && out_at >= to->len)
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

static void copy_private(const struct rway_packet *packet, const struct rway_piece *to)
{
    const uint8_t *from = packet->bytes;
    uint32_t left = packet->private_len;
    for (; left != 0; to++) {
        size_t here = to->len < left ? to->len : left;
        memcpy(to->data, from, here);
        from += here;
        left -= (uint32_t)here;
    }
}

static __attribute__((noinline)) void fill_pieces(const struct rway_packet *packet, const struct rway_consumer *in,
                                                  const struct rway_producer *out, const struct rway_frame *to)
{
    struct rway_piece from_pieces[RWAY_PIECES_MAX], to_pieces[RWAY_PIECES_MAX];
    rway_consumer_pieces(in, packet->in, from_pieces);
    rway_producer_pieces(out, to, to_pieces);
    copy_private(packet, to_pieces);
    copy_rest(from_pieces, to_pieces, packet->skip, packet->private_len, packet->in->len - packet->skip);
}

void rway_packet_fill(const struct rway_packet *packet, const struct rway_consumer *in, const struct rway_producer *out,
                      struct rway_frame *to)
{
    const struct rway_frame *from = packet->in;
    if (packet->offload.flags != 0)
        rway_frame_set_offload(out, to, &packet->offload);
    if (__builtin_expect(from->slots != 1 || to->slots != 1, 0)) {
        fill_pieces(packet, in, out, to);
        return;
    }
    uint32_t rest = from->len - packet->skip;
    rway_copy_short(to->data, packet->bytes, packet->private_len);
    if (rest <= SHORT_MAX)
        rway_copy_short(to->data + packet->private_len, from->data + packet->skip, rest);
    else
        memcpy(to->data + packet->private_len, from->data + packet->skip, rest);
}
