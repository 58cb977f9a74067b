/*
 * Frames from the link into a guest's receive buffers: virtio 1.2, 5.1.6.4.
 *
 *      peek a burst ─► for each frame: fetch buffers that hold it ─► header and frame into them, one copy
 *                                                                 ─► release in the link ─► show the guest
 *
 * A frame for which the guest has no buffers yet stays in the link, and so do those behind it: a guest that is slow,
 * stopped or rebooting fills its own ring and no more (law 9). Checksums and segments that it did not negotiate are
 * finished here, in a private copy. Buffers are shown after the release, so that who dies in between has lost frames
 * and never doubled them.
 */
#include "pair.h"

#include <linux/virtio_config.h>
#include <stdlib.h>

enum fate {
    FATE_TAKEN,
    FATE_UNFIT,  /* the guest will never take it */
    FATE_STARVED /* not now */
};

/* A frame as it is to come into the guest: its header, then its bytes in pieces. */
struct outgoing {
    struct virtio_net_hdr_mrg_rxbuf header;
    struct rway_piece pieces[RWAY_PIECES_MAX + 3]; /* the header, and two more where a tag is put back */
    uint64_t len;                                  /* bytes, header included */
};

/* ---- buffers ---- */

/* Give the buffers fetched so far back with nothing in them. The guest's driver drops such, and posts them again. */
static void return_empty(struct pair *pair, uint32_t count)
{
    struct rway_vring *ring = &pair->rings[RWAY_VRING_RECEIVE];
    for (uint32_t i = 0; i < count; i++)
        rway_vring_use(ring, &pair->chains[i], 0);
    rway_write_once(&pair->state.returned, pair->state.returned + count);
    rway_vring_put_back(ring, ring->next);
}

/*
 * Fetch buffers for a frame of len bytes into chains; how many, or none and its fate. What cannot be a buffer is given
 * back at once, and so are those fetched before it, because buffers are given back in order; a guest that posts nothing
 * else keeps us no longer than it takes to go round its ring once.
 */
static uint32_t fetch_buffers(struct pair *pair, uint64_t len, uint32_t header_len, enum fate *fate)
{
    struct rway_vring *ring = &pair->rings[RWAY_VRING_RECEIVE];
    bool mergeable = pair_has(ring, VIRTIO_NET_F_MRG_RXBUF);
    struct rway_vring_cursor first = ring->next;
    uint64_t room = 0;
    uint32_t count = 0, slots = 0, walked = 0;
    rway_vring_put_back(ring, first);
    *fate = FATE_UNFIT;
    while (room < len && count < RWAY_CHAIN_MAX && (count == 0 || mergeable)) {
        struct rway_chain *chain = &pair->chains[count];
        enum rway_fetch fetched = rway_vring_fetch(ring, chain);
        if (fetched == RWAY_FETCH_NONE || fetched == RWAY_FETCH_BROKEN || walked > ring->size) {
            /* A guest whose whole ring does not hold the frame can post no more: it is dropped. */
            *fate = fetched == RWAY_FETCH_NONE && slots >= ring->size ? FATE_UNFIT : FATE_STARVED;
            rway_vring_put_back(ring, first);
            return 0;
        }
        if (fetched == RWAY_FETCH_NO_ROOM)
            break;
        walked += chain->slots;
        if (chain->bad || chain->len < header_len) {
            return_empty(pair, count + 1);
            first = ring->next;
            room = count = slots = 0;
            continue;
        }
        room += chain->len;
        slots += chain->slots;
        count++;
    }
    if (room >= len)
        return count;
    rway_vring_put_back(ring, first);
    return 0;
}

/* One frame into the guest's buffers. */
static enum fate give(struct pair *pair, struct outgoing *out)
{
    struct rway_vring *ring = &pair->rings[RWAY_VRING_RECEIVE];
    bool whole_header = pair_has(ring, VIRTIO_NET_F_MRG_RXBUF) || pair_has(ring, VIRTIO_F_VERSION_1);
    uint32_t header_len = whole_header ? HEADER_LEN : LEGACY_HEADER_LEN;
    enum fate fate;
    uint64_t left = out->len - HEADER_LEN + header_len;
    uint32_t count = fetch_buffers(pair, left, header_len, &fate);
    if (count == 0)
        return fate;
    out->header.num_buffers = (uint16_t)count;
    out->pieces[0] = (struct rway_piece){.data = (uint8_t *)&out->header, .len = header_len};
    struct place to = {.piece = ring->pieces}, from = {.piece = out->pieces};
    pieces_copy(&to, &from, left);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t here = pair->chains[i].len < left ? pair->chains[i].len : left;
        rway_vring_use(ring, &pair->chains[i], (uint32_t)here);
        left -= here;
    }
    rway_write_once(&pair->state.moved[RWAY_VRING_RECEIVE], pair->state.moved[RWAY_VRING_RECEIVE] + 1);
    return FATE_TAKEN;
}

/* ---- headers ---- */

/* May the guest be left to cut such a frame? */
static bool takes_segments(const struct rway_vring *ring, uint16_t gso_type)
{
    if (gso_type & RWAY_GSO_ECN && !pair_has(ring, VIRTIO_NET_F_GUEST_ECN))
        return false;
    switch (gso_type & ~(uint32_t)RWAY_GSO_ECN) {
    case RWAY_GSO_TCP4:
        return pair_has(ring, VIRTIO_NET_F_GUEST_TSO4);
    case RWAY_GSO_TCP6:
        return pair_has(ring, VIRTIO_NET_F_GUEST_TSO6);
    default:
        return false;
    }
}

static void set_header(struct outgoing *out, const struct rway_vring *ring, const struct rway_offload *offload,
                       const struct rway_frame *frame, uint16_t tag)
{
    struct virtio_net_hdr *header = (struct virtio_net_hdr *)&out->header;
    if (offload->flags & RWAY_EXT_CSUM) {
        header->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header->csum_start = offload->csum_start + tag;
        header->csum_offset = offload->csum_offset;
    } else if (frame->flags & RWAY_FLAG_CSUM_VALID && pair_has(ring, VIRTIO_NET_F_GUEST_CSUM)) {
        header->flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    if (offload->flags & RWAY_EXT_GSO) {
        header->gso_type = (uint8_t)offload->gso_type;
        header->gso_size = offload->gso_size;
        header->hdr_len = offload->hdr_len ? offload->hdr_len + tag : 0;
    }
}

/* ---- frames that are finished here ---- */

/* The segments of the frame that is being cut. FATE_TAKEN when all are given. */
static enum fate give_segments(struct pair *pair)
{
    struct outgoing out;
    uint32_t len;
    while ((len = rway_segmenter_next_len(&pair->cut)) != 0) {
        struct rway_segmenter before = pair->cut;
        uint8_t *segment = pair->whole + pair->frame_max + TAG_LEN;
        rway_segmenter_next(&pair->cut, segment);
        memset(&out.header, 0, sizeof out.header);
        out.len = HEADER_LEN + (uint64_t)len;
        out.pieces[1] = (struct rway_piece){.data = segment, .len = len};
        enum fate fate = give(pair, &out);
        if (fate == FATE_STARVED) {
            pair->cut = before;
            return fate;
        }
        if (fate == FATE_UNFIT)
            rway_write_once(&pair->state.unfit, pair->state.unfit + 1);
    }
    return FATE_TAKEN;
}

/* A private copy, with its tag put back, so that what is summed and cut is what is sent. False without memory. */
static bool copy_whole(struct pair *pair, struct outgoing *out)
{
    uint64_t len = out->len - HEADER_LEN;
    if (pair->whole == NULL)
        pair->whole = malloc((size_t)pair->frame_max + TAG_LEN + RWAY_SEGMENT_HEADERS_MAX + UINT16_MAX);
    if (pair->whole == NULL)
        return false;
    const struct rway_piece target = {.data = pair->whole, .len = len};
    struct place to = {.piece = &target}, from = {.piece = &out->pieces[1]};
    pieces_copy(&to, &from, len);
    out->pieces[1] = (struct rway_piece){.data = pair->whole, .len = len};
    return true;
}

static enum fate give_finished(struct pair *pair, struct outgoing *out, struct rway_offload *offload, uint16_t tag,
                               uint32_t *cause)
{
    uint32_t len = (uint32_t)(out->len - HEADER_LEN);
    offload->csum_start = (uint16_t)(offload->csum_start + tag);
    if (offload->hdr_len)
        offload->hdr_len = (uint16_t)(offload->hdr_len + tag);
    if (!copy_whole(pair, out))
        return FATE_STARVED;
    if (!(offload->flags & RWAY_EXT_GSO)) {
        rway_checksum_finish(pair->whole, len, offload);
        *cause = RWAY_DROP_SINK;
        return give(pair, out);
    }
    if (rway_segmenter_begin(&pair->cut, pair->whole, len, offload) != 0)
        return FATE_UNFIT;
    give_segments(pair); /* those that find no buffers now are this job's from here on, not the link's */
    return FATE_TAKEN;
}

/* ---- the burst ---- */

static enum fate give_frame(struct pair *pair, const struct rway_consumer *source, const struct rway_frame *frame,
                            uint32_t *cause)
{
    const struct rway_vring *ring = &pair->rings[RWAY_VRING_RECEIVE];
    const uint8_t tag_bytes[TAG_LEN] = {0x81, 0x00, (uint8_t)(frame->vlan >> 8), (uint8_t)frame->vlan};
    uint16_t tag = frame->flags & RWAY_FLAG_VLAN ? TAG_LEN : 0;
    struct outgoing out;
    struct rway_offload offload;
    memset(&out.header, 0, sizeof out.header);
    *cause = RWAY_DROP_OFFLOAD;
    if (rway_frame_offload(source, frame, &offload) != 0)
        return FATE_UNFIT;
    uint32_t first = tag ? 3 : 1;
    rway_consumer_pieces(source, frame, &out.pieces[first]);
    if (tag) {
        /* A tag that was taken off goes back between the addresses and the type. */
        out.pieces[1] = (struct rway_piece){.data = out.pieces[3].data, .len = TAG_AT};
        out.pieces[2] = (struct rway_piece){.data = (uint8_t *)tag_bytes, .len = TAG_LEN};
        out.pieces[3].data += TAG_AT;
        out.pieces[3].len -= TAG_AT;
    }
    out.len = HEADER_LEN + (uint64_t)frame->len + tag;
    bool finish = offload.flags & RWAY_EXT_CSUM && !pair_has(ring, VIRTIO_NET_F_GUEST_CSUM);
    if (offload.flags & RWAY_EXT_GSO && !takes_segments(ring, offload.gso_type))
        finish = true;
    if (finish)
        return give_finished(pair, &out, &offload, tag, cause);
    *cause = RWAY_DROP_SINK;
    set_header(&out, ring, &offload, frame, tag);
    return give(pair, &out);
}

/* A burst of one queue's frames. Returns how many it dealt with, and what became of the last one. */
static uint32_t receive_from(struct pair *pair, struct rway_consumer *source, enum fate *fate)
{
    struct rway_frame frames[RWAY_BURST];
    uint32_t taken = rway_ring_peek(source, frames, RWAY_BURST), done = 0;
    while (done < taken && *fate != FATE_STARVED) {
        uint32_t cause;
        *fate = give_frame(pair, source, &frames[done], &cause);
        if (*fate == FATE_UNFIT)
            rway_consumer_drop(source, cause, 1);
        done += *fate != FATE_STARVED;
        if (rway_segmenter_next_len(&pair->cut) != 0)
            *fate = FATE_STARVED; /* of this frame's segments there are some left */
    }
    rway_consumer_put_back(source, &frames[done], taken - done);
    rway_ring_release(source);
    return done;
}

uint32_t pair_receive(struct pair *pair)
{
    struct rway_vring *ring = &pair->rings[RWAY_VRING_RECEIVE];
    uint64_t before = pair->state.returned;
    uint32_t done = 0;
    if (!pair_receives(pair))
        return 0;
    enum fate fate = give_segments(pair);
    uint32_t first = pair->next_source++;
    for (uint32_t i = 0; i < pair->source_count && fate != FATE_STARVED; i++)
        done += receive_from(pair, pair->sources[(first + i) % pair->source_count], &fate);
    pair->starved = fate == FATE_STARVED;
    rway_vring_show(ring);
    pair_call(pair, RWAY_VRING_RECEIVE);
    return done + (uint32_t)(pair->state.returned - before);
}
