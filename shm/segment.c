/*
 * Segmentation in software: a whole frame of TCP or UDP becomes the frames that a wire would have carried.
 *
 * What a kernel does for a device that cannot (RFC 9293 and 768 for the headers, RFC 3168 6.1.2 for CWR). Frame and
 * offload data are private copies, but a peer wrote both: headers are walked with a bound, lengths are taken from the
 * bytes that are there, and what cannot be cut is refused before its first segment.
 */
#include <netinet/in.h>
#include <stdbool.h>

#include "checksum.h"
#include "ringway.h"

enum { MACS_LEN = 12, TAG_LEN = 4, IP4_LEN = 20, IP6_LEN = 40, TCP_LEN = 20, UDP_LEN = 8 };
enum { TCP_CSUM_AT = 16, UDP_CSUM_AT = 6 };
enum { TYPE_IP4 = 0x0800, TYPE_IP6 = 0x86dd, TYPE_VLAN = 0x8100, TYPE_QINQ = 0x88a8 };
enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80 };

static uint16_t load16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static void store16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t load32(const uint8_t *at)
{
    return (uint32_t)load16(at) << 16 | load16(at + 2);
}

static void store32(uint8_t *at, uint32_t value)
{
    store16(at, value >> 16);
    store16(at + 2, value);
}

/* Behind the VLAN tags; the network header and all behind it up to l4 are there. Returns the type, or 0. */
static uint16_t find_network(struct rway_segmenter *cut)
{
    uint32_t at = MACS_LEN;
    uint16_t type = load16(cut->bytes + at);
    while ((type == TYPE_VLAN || type == TYPE_QINQ) && at + 2 + TAG_LEN <= cut->l4) {
        at += TAG_LEN;
        type = load16(cut->bytes + at);
    }
    cut->l3 = at + 2;
    return type;
}

/*
 * Where the packet ends by its own length, which padding may follow. One that would go on behind its frame has lost
 * bytes that nobody can put into a segment.
 */
static int find_end(struct rway_segmenter *cut, uint32_t from, uint16_t said)
{
    if (from + said > cut->end || from + said < cut->l4)
        return -1;
    cut->end = from + said;
    return 0;
}

static int walk_ip4(struct rway_segmenter *cut, uint8_t protocol)
{
    const uint8_t *ip = cut->bytes + cut->l3;
    uint32_t header = cut->l4 - cut->l3;
    if (cut->l4 < cut->l3 + IP4_LEN || ip[0] >> 4 != 4 || (ip[0] & 15) * 4u != header || ip[9] != protocol)
        return -1;
    if (load16(ip + 6) & 0x3fff) /* a fragment: MF or an offset */
        return -1;
    return find_end(cut, cut->l3, load16(ip + 2));
}

/* The headers that a segment may repeat; AH and ESP protect what each would change, a fragment is no whole packet. */
static int walk_ip6(struct rway_segmenter *cut, uint8_t protocol)
{
    const uint8_t *ip = cut->bytes + cut->l3;
    uint32_t at = cut->l3 + IP6_LEN;
    if (at > cut->l4 || ip[0] >> 4 != 6)
        return -1;
    uint8_t next = ip[6];
    while (at + 8 <= cut->l4 && (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS)) {
        next = cut->bytes[at];
        at += (cut->bytes[at + 1] + 1u) * 8;
    }
    if (at != cut->l4 || next != protocol)
        return -1;
    return find_end(cut, cut->l3 + IP6_LEN, load16(ip + 4));
}

/* Every offset is checked against l4 and end, which rway_offload_check has checked against the frame. */
static int walk(struct rway_segmenter *cut, uint16_t gso_type)
{
    uint32_t l4_len = cut->tcp ? (cut->bytes[cut->l4 + 12] >> 4) * 4u : UDP_LEN;
    cut->payload = cut->at = cut->l4 + l4_len;
    if (l4_len < (cut->tcp ? TCP_LEN : UDP_LEN) || cut->payload > RWAY_SEGMENT_HEADERS_MAX)
        return -1;
    uint16_t type = find_network(cut);
    uint8_t protocol = cut->tcp ? IPPROTO_TCP : IPPROTO_UDP;
    cut->ip4 = type == TYPE_IP4;
    if (type != TYPE_IP4 && type != TYPE_IP6)
        return -1;
    if (cut->tcp && ((gso_type & ~RWAY_GSO_ECN) == RWAY_GSO_TCP4) != cut->ip4)
        return -1;
    if ((cut->ip4 ? walk_ip4(cut, protocol) : walk_ip6(cut, protocol)) != 0)
        return -1;
    return cut->payload < cut->end ? 0 : -1;
}

int rway_segmenter_begin(struct rway_segmenter *cut, const uint8_t *bytes, uint32_t len,
                         const struct rway_offload *offload)
{
    *cut = (struct rway_segmenter){.bytes = bytes,
                                   .end = len,
                                   .l4 = offload->csum_start,
                                   .size = offload->gso_size,
                                   .tcp = offload->gso_type != RWAY_GSO_UDP};
    bool whole = offload->flags & RWAY_EXT_GSO && rway_offload_check(offload, len) == 0;
    if (whole && walk(cut, offload->gso_type) == 0)
        return 0;
    *cut = (struct rway_segmenter){0};
    return -1;
}

static uint32_t payload_of_next(const struct rway_segmenter *cut)
{
    uint32_t left = cut->end - cut->at;
    return left < cut->size ? left : cut->size;
}

uint32_t rway_segmenter_next_len(const struct rway_segmenter *cut)
{
    return cut->at < cut->end ? cut->payload + payload_of_next(cut) : 0;
}

/* The id of each datagram is one more than that of the one before: RFC 6864 lets a sender do so, and Linux does. */
static void finish_network(const struct rway_segmenter *cut, uint8_t *to, uint32_t len)
{
    uint8_t *ip = to + cut->l3;
    if (!cut->ip4) {
        store16(ip + 4, len - cut->l3 - IP6_LEN);
        return;
    }
    store16(ip + 2, len - cut->l3);
    store16(ip + 4, load16(ip + 4) + cut->done);
    store16(ip + 10, 0);
    rway_sum_store(rway_sum_add(0, ip, cut->l4 - cut->l3), ip + 10);
}

static void finish_tcp(const struct rway_segmenter *cut, uint8_t *tcp, bool last)
{
    store32(tcp + 4, load32(tcp + 4) + cut->at - cut->payload);
    if (!last)
        tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (cut->done != 0)
        tcp[13] &= (uint8_t)~TCP_CWR;
}

/*
 * The field holds the sum of the pseudo header, as the sender knew it (behind a routing header its destination is not
 * the one in front). Only the length in it is another for each segment: less the whole one is plus its complement.
 */
static void finish_checksum(const struct rway_segmenter *cut, uint8_t *to, uint32_t len)
{
    uint8_t *field = to + cut->l4 + (cut->tcp ? TCP_CSUM_AT : UDP_CSUM_AT);
    uint64_t sum = rway_sum_add_word(0, (uint16_t)~(cut->end - cut->l4));
    sum = rway_sum_add_word(sum, (uint16_t)(len - cut->l4));
    rway_sum_store(rway_sum_add(sum, to + cut->l4, len - cut->l4), field);
    if (!cut->tcp && load16(field) == 0)
        store16(field, 0xffff); /* RFC 768: 0 means "none" */
}

uint32_t rway_segmenter_next(struct rway_segmenter *cut, uint8_t *to)
{
    uint32_t len = rway_segmenter_next_len(cut);
    if (len == 0)
        return 0;
    uint32_t payload = payload_of_next(cut);
    memcpy(to, cut->bytes, cut->payload);
    memcpy(to + cut->payload, cut->bytes + cut->at, payload);
    finish_network(cut, to, len);
    if (cut->tcp)
        finish_tcp(cut, to + cut->l4, cut->at + payload == cut->end);
    else
        store16(to + cut->l4 + 4, len - cut->l4);
    finish_checksum(cut, to, len);
    cut->at += payload;
    cut->done++;
    return len;
}
