/*
 * Checksum and segmentation data of a frame: the extension line, its checks, and the checksum itself.
 *
 * The data tells a kernel where to store two bytes and where to cut; each end checks it against the length of the
 * frame it came with before anything else sees it (CVE-2024-11614 is what happens otherwise). A forwarder checks in
 * addition that it fits the packet it has judged: rway_offload_fits in stack/.
 */
#include "checksum.h"
#include "ring.h"

enum { ETH_LEN = 14, TAG_LEN = 4, TCP_LEN = 20, TCP_CSUM_AT = 16, UDP_LEN = 8, UDP_CSUM_AT = 6 };

static int check_gso(const struct rway_offload *offload, uint32_t len)
{
    uint32_t type = offload->gso_type & ~(uint32_t)RWAY_GSO_ECN;
    bool tcp = type == RWAY_GSO_TCP4 || type == RWAY_GSO_TCP6;
    if (!tcp && offload->gso_type != RWAY_GSO_UDP)
        return -1;
    uint32_t header = tcp ? TCP_LEN : UDP_LEN;
    if (offload->csum_offset != (tcp ? TCP_CSUM_AT : UDP_CSUM_AT))
        return -1;
    if ((uint32_t)offload->csum_start + header > len)
        return -1;
    /* Without a bound one frame would make the receiver cut, and send on, tens of thousands. */
    uint32_t most = tcp ? RWAY_SEGMENTS_TCP_MAX : RWAY_SEGMENTS_UDP_MAX;
    if (len - offload->csum_start - header > offload->gso_size * most)
        return -1;
    if (offload->gso_size == 0)
        return -1;
    if (offload->hdr_len != 0 && ((uint32_t)offload->hdr_len < offload->csum_start + header || offload->hdr_len > len))
        return -1;
    return 0;
}

int rway_offload_check(const struct rway_offload *offload, uint32_t len)
{
    if (offload->flags & ~(RWAY_EXT_CSUM | RWAY_EXT_GSO))
        return -1;
    if (!(offload->flags & RWAY_EXT_CSUM))
        return offload->flags & RWAY_EXT_GSO ? -1 : 0;
    /* A consumer that puts a VLAN tag back adds its 4 bytes to both, in 16 bits. */
    if (offload->csum_start > UINT16_MAX - TAG_LEN || offload->hdr_len > UINT16_MAX - TAG_LEN)
        return -1;
    if (offload->csum_start < ETH_LEN || (uint32_t)offload->csum_start + offload->csum_offset + 2 > len)
        return -1;
    return offload->flags & RWAY_EXT_GSO ? check_gso(offload, len) : 0;
}

/* The line lies at the start of the first slot, before any pushed bytes. */
static struct rway_extension *extension_of(const struct rway_ring *ring, const struct rway_frame *frame)
{
    return (struct rway_extension *)rway_slot(ring, frame->index);
}

int rway_frame_offload(const struct rway_consumer *consumer, const struct rway_frame *frame,
                       struct rway_offload *offload)
{
    *offload = (struct rway_offload){0};
    if (!(frame->flags & RWAY_FLAG_EXTENSION))
        return 0;
    const struct rway_extension *peer_x = extension_of(&consumer->ring, frame);
    struct rway_offload found = {
        .flags = rway_read_once(&peer_x->flags) & (RWAY_EXT_CSUM | RWAY_EXT_GSO),
        .gso_type = rway_read_once(&peer_x->gso_type),
        .gso_size = rway_read_once(&peer_x->gso_size),
        .hdr_len = rway_read_once(&peer_x->hdr_len),
        .csum_start = rway_read_once(&peer_x->csum_start),
        .csum_offset = rway_read_once(&peer_x->csum_offset),
    };
    if (rway_offload_check(&found, frame->len) != 0)
        return -1;
    if (found.flags & RWAY_EXT_CSUM)
        *offload = found;
    return 0;
}

int rway_frame_set_offload(const struct rway_producer *producer, struct rway_frame *frame,
                           const struct rway_offload *offload)
{
    frame->flags &= (uint8_t)~RWAY_FLAG_EXTENSION;
    if (offload->flags == 0)
        return 0;
    if (rway_offload_check(offload, frame->len) != 0)
        return -1;
    *extension_of(&producer->ring, frame) = (struct rway_extension){
        .flags = offload->flags,
        .gso_type = offload->gso_type,
        .gso_size = offload->gso_size,
        .hdr_len = offload->hdr_len,
        .csum_start = offload->csum_start,
        .csum_offset = offload->csum_offset,
    };
    frame->flags |= RWAY_FLAG_EXTENSION;
    return 0;
}

void rway_checksum_finish(uint8_t *frame, uint32_t len, const struct rway_offload *offload)
{
    if (!(offload->flags & RWAY_EXT_CSUM) || rway_offload_check(offload, len) != 0)
        return;
    uint8_t *field = frame + offload->csum_start + offload->csum_offset;
    rway_sum_store(rway_sum_add(0, frame + offload->csum_start, len - offload->csum_start), field);
    /* RFC 768: a UDP checksum of 0 means "none"; its other form is stored instead. TCP never minds. */
    if (field[0] == 0 && field[1] == 0 && offload->csum_offset == UDP_CSUM_AT)
        field[0] = field[1] = 0xff;
}
