/*
 * Compares a frame's offload data with the headers that were judged.
 *
 * The receiver's kernel stores two bytes at csum_start + csum_offset, and cuts segments by gso_type, after the filter
 * has judged the frame. A place among the judged headers that is not this packet's transport checksum could rewrite,
 * say, the destination port behind the filter's back; a type of another protocol could make other packets of the bytes.
 */

#include "stack.h"

/* Where the transport checksum stands in its header, or 0 for a packet whose checksum nobody may finish. */
static uint16_t checksum_place(const struct rway_headers *headers)
{
    /* A fragment's checksum covers bytes that are in other frames. */
    if (headers->ip_version == 0 || headers->flags & (RWAY_HEADERS_FIRST_FRAGMENT | RWAY_HEADERS_LATER_FRAGMENT))
        return 0;
    if (headers->protocol == IPPROTO_TCP)
        return 16;                                   /* RFC 9293 3.1 */
    return headers->protocol == IPPROTO_UDP ? 6 : 0; /* RFC 768 */
}

/*
 * hdr_len is a hint (virtio 1.2, 5.1.6.2) for which Linux gives the linear part of its buffer, so it may be longer
 * than the headers: whatever cuts by it repeats some payload behind the judged headers: its own loss. Shorter, it
 * would end the repeated headers early and make the rest of each segment's header of bytes that nobody judged.
 */
static bool segmentation_fits(const struct rway_headers *headers, const struct rway_offload *offload)
{
    bool tcp = headers->protocol == IPPROTO_TCP;
    uint16_t type = offload->gso_type;

    if (offload->hdr_len != 0 && offload->hdr_len < headers->payload_offset)
        return false;
    if (type == RWAY_GSO_UDP)
        return headers->protocol == IPPROTO_UDP;
    type &= (uint16_t)~RWAY_GSO_ECN;
    return tcp && type == (headers->ip_version == 4 ? RWAY_GSO_TCP4 : RWAY_GSO_TCP6);
}

/*
 * The checksum of a packet inside this one (VXLAN, GRE, IPIP from a kernel that leaves inner checksums to its device):
 * it reads and writes only bytes that nobody has judged, and that the sender could have chosen anyway.
 */
static bool lies_in_payload(const struct rway_headers *headers, const struct rway_offload *offload)
{
    bool fragment = headers->flags & (RWAY_HEADERS_FIRST_FRAGMENT | RWAY_HEADERS_LATER_FRAGMENT);
    return headers->ip_version != 0 && !fragment && offload->csum_start >= headers->payload_offset &&
           offload->csum_start > headers->l4_offset;
}

int rway_offload_fits(const struct rway_headers *headers, const struct rway_offload *offload)
{
    uint16_t place = checksum_place(headers);

    if (offload->flags == 0)
        return 1;
    if (offload->flags & ~(RWAY_EXT_CSUM | RWAY_EXT_GSO) || !(offload->flags & RWAY_EXT_CSUM))
        return 0;
    if (lies_in_payload(headers, offload))
        return !(offload->flags & RWAY_EXT_GSO);
    if (place == 0 || offload->csum_start != headers->l4_offset || offload->csum_offset != place)
        return 0;
    return !(offload->flags & RWAY_EXT_GSO) || segmentation_fits(headers, offload);
}
