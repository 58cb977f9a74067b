/*
 * Frames from a guest's transmit buffers into the link: virtio 1.2, 5.1.6.2.
 *
 *      fetch a chain ─► header into private memory, checked ─► claim slots ─► one copy    (a burst of them)
 *                                                        ─► give the chains back ─► publish in the link
 *
 * When the link has no room the chain stays in the guest's ring, where its own queueing discipline sees it. Chains are
 * given back before frames are published, so that who dies in between has lost frames and never doubled them.
 */
#include "pair.h"

#include <linux/virtio_config.h>

enum outcome { OUTCOME_TAKEN, OUTCOME_DROPPED, OUTCOME_HELD };

/*
 * The guest's header as our offload data; -1 for what it has not negotiated, or what no frame can say. The flag for
 * checked checksums is not the guest's to set, and its hdr_len is a hint that we do without.
 */
static int offload_of(const struct rway_vring *ring, const struct virtio_net_hdr *header, struct rway_offload *offload)
{
    uint32_t type = header->gso_type & ~(uint32_t)VIRTIO_NET_HDR_GSO_ECN;
    *offload = (struct rway_offload){0};
    if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        if (!pair_has(ring, VIRTIO_NET_F_CSUM))
            return -1;
        offload->flags = RWAY_EXT_CSUM;
        offload->csum_start = header->csum_start;
        offload->csum_offset = header->csum_offset;
    }
    if (type == VIRTIO_NET_HDR_GSO_NONE)
        return 0;
    if (!(type == VIRTIO_NET_HDR_GSO_TCPV4 && pair_has(ring, VIRTIO_NET_F_HOST_TSO4)) &&
        !(type == VIRTIO_NET_HDR_GSO_TCPV6 && pair_has(ring, VIRTIO_NET_F_HOST_TSO6)))
        return -1;
    offload->flags |= RWAY_EXT_GSO;
    offload->gso_type = header->gso_type;
    offload->gso_size = header->gso_size;
    return 0;
}

static enum outcome drop(struct pair *pair, uint32_t cause)
{
    rway_producer_drop(pair->producer, cause, 1);
    return OUTCOME_DROPPED;
}

/* Copy a chain's frame of len bytes, which begins at from, into a claimed one. */
static void fill(struct pair *pair, const struct rway_frame *frame, struct place *from)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    rway_producer_pieces(pair->producer, frame, pieces);
    struct place to = {.piece = pieces};
    pieces_copy(&to, from, frame->len);
}

static enum outcome take_chain(struct pair *pair, const struct rway_chain *chain, struct rway_frame *frame)
{
    const struct rway_vring *ring = &pair->rings[RWAY_VRING_TRANSMIT];
    bool whole_header = pair_has(ring, VIRTIO_NET_F_MRG_RXBUF) || pair_has(ring, VIRTIO_F_VERSION_1);
    uint32_t header_len = whole_header ? HEADER_LEN : LEGACY_HEADER_LEN;
    struct virtio_net_hdr_mrg_rxbuf header;
    struct rway_offload offload;
    if (!ring->enabled)
        return drop(pair, RWAY_DROP_DOWN);
    if (chain->bad)
        return drop(pair, RWAY_DROP_MALFORMED);
    if (chain->len < header_len)
        return drop(pair, RWAY_DROP_RUNT);
    uint64_t len = chain->len - header_len;
    int unfit = rway_producer_fits(pair->producer, len < UINT32_MAX ? (uint32_t)len : UINT32_MAX, 0);
    if (unfit)
        return drop(pair, (uint32_t)unfit - 1);
    const struct rway_piece target = {.data = (uint8_t *)&header, .len = sizeof header};
    struct place from = {.piece = ring->pieces}, to = {.piece = &target};
    pieces_copy(&to, &from, header_len);
    *frame = (struct rway_frame){.len = (uint32_t)len};
    if (offload_of(ring, (const struct virtio_net_hdr *)&header, &offload) != 0 ||
        rway_offload_check(&offload, frame->len) != 0)
        return drop(pair, RWAY_DROP_OFFLOAD);
    if (rway_ring_claim(pair->producer, frame, 1) == 0) {
        if (rway_read_once(&pair->drops))
            return drop(pair, RWAY_DROP_FULL);
        pair->held_len = frame->len;
        return OUTCOME_HELD;
    }
    fill(pair, frame, &from);
    rway_frame_set_offload(pair->producer, frame, &offload);
    return OUTCOME_TAKEN;
}

uint32_t pair_transmit(struct pair *pair)
{
    struct rway_vring *ring = &pair->rings[RWAY_VRING_TRANSMIT];
    struct rway_frame frames[RWAY_BURST];
    uint32_t filled = 0, done = 0;
    struct rway_chain chain;
    if (!rway_vring_runs(ring))
        return 0;
    pair->held = false;
    while (done < RWAY_BURST) {
        struct rway_vring_cursor first = ring->next;
        rway_vring_put_back(ring, first);
        if (rway_vring_fetch(ring, &chain) != RWAY_FETCH_CHAIN)
            break;
        enum outcome outcome = take_chain(pair, &chain, &frames[filled]);
        if (outcome == OUTCOME_HELD) {
            rway_vring_put_back(ring, first);
            pair->held = true;
            break;
        }
        filled += outcome == OUTCOME_TAKEN;
        rway_vring_use(ring, &chain, 0);
        done++;
    }
    rway_write_once(&pair->state.moved[RWAY_VRING_TRANSMIT], pair->state.moved[RWAY_VRING_TRANSMIT] + done);
    rway_vring_show(ring);
    rway_ring_publish(pair->producer, frames, filled);
    pair_call(pair, RWAY_VRING_TRANSMIT);
    return done;
}
