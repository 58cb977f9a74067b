/*
 * Reads a frame's headers out of a private copy of its first bytes, and refuses those that cannot be judged.
 *
 * Ethernet, up to two VLAN tags, ARP, IPv4, IPv6 with extension headers, TCP, UDP, SCTP, ICMP, ICMPv6. Anything else
 * passes with what was understood so far. What a bad peer would gain without a check stands beside it; the common
 * gain is a packet that the filter reads one way and the receiver another.
 *
 * Every parser gets an offset that is inside the copied bytes and hands one on, so sums of offsets cannot overflow.
 */

#include <string.h>

#include "stack.h"

enum { IP4_HEADER = 20, IP6_HEADER = 40, EXTENSIONS_MAX = 8, VLAN_TAG = 4, VLANS_MAX = 2, IP_MAX = 65535 };

/* The bytes that may be looked at. */
struct view {
    const uint8_t *bytes;
    uint32_t copied;
    uint32_t end; /* where the innermost packet ends so far: the frame's end, then the IP packet's */
};

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint16_t read16(const uint8_t *bytes)
{
    return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

/* Are len bytes from offset on part of the packet, and here? 0, or the cause: cut when the packet ends before them. */
static int need(const struct view *view, uint32_t offset, uint32_t len, int cut)
{
    if (offset > view->end || len > view->end - offset)
        return cut;
    return offset + len <= view->copied ? RWAY_WELL_FORMED : RWAY_MALFORMED_TOO_LONG;
}

static int parse_ports(const struct view *view, struct rway_headers *headers, uint32_t header_len, int cut)
{
    const uint8_t *bytes = view->bytes + headers->l4_offset;
    int cause = need(view, headers->l4_offset, header_len, cut);

    if (cause != RWAY_WELL_FORMED)
        return cause;
    headers->source_port = read16(bytes);
    headers->destination_port = read16(bytes + 2);
    headers->l4_len = (uint16_t)header_len;
    headers->flags |= RWAY_HEADERS_PORTS;
    return RWAY_WELL_FORMED;
}

/* RFC 9293 3.1. The options must be here as well: offload data is compared with the whole header's length. */
static int parse_tcp(const struct view *view, struct rway_headers *headers, int cut)
{
    const uint8_t *bytes = view->bytes + headers->l4_offset;
    int cause = parse_ports(view, headers, 20, cut);
    uint32_t header_len;

    if (cause != RWAY_WELL_FORMED)
        return cause;
    header_len = (bytes[12] >> 4) * 4u;
    if (header_len < 20)
        return RWAY_MALFORMED_TRANSPORT;
    headers->tcp_flags = bytes[13];
    headers->l4_len = (uint16_t)header_len;
    return need(view, headers->l4_offset, header_len, cut);
}

/* RFC 768. A first fragment carries the length of the whole datagram, so only a lower bound can be checked there. */
static int parse_udp(const struct view *view, struct rway_headers *headers, int cut)
{
    int cause = parse_ports(view, headers, 8, cut);
    uint32_t length;

    if (cause != RWAY_WELL_FORMED)
        return cause;
    length = read16(view->bytes + headers->l4_offset + 4);
    if (length < 8)
        return RWAY_MALFORMED_TRANSPORT;
    if (!(headers->flags & RWAY_HEADERS_FIRST_FRAGMENT) && length > view->end - headers->l4_offset)
        return RWAY_MALFORMED_TRANSPORT;
    return RWAY_WELL_FORMED;
}

static int parse_icmp(const struct view *view, struct rway_headers *headers, uint32_t header_len, int cut)
{
    int cause = need(view, headers->l4_offset, header_len, cut);

    if (cause != RWAY_WELL_FORMED)
        return cause;
    headers->icmp_type = view->bytes[headers->l4_offset];
    headers->icmp_code = view->bytes[headers->l4_offset + 1];
    headers->l4_len = (uint16_t)header_len;
    headers->flags |= RWAY_HEADERS_ICMP;
    return RWAY_WELL_FORMED;
}

static int parse_transport(const struct view *view, struct rway_headers *headers)
{
    int cut = headers->flags & RWAY_HEADERS_FIRST_FRAGMENT ? RWAY_MALFORMED_TINY_FRAGMENT : RWAY_MALFORMED_TRANSPORT;

    if (headers->protocol == IPPROTO_TCP)
        return parse_tcp(view, headers, cut);
    if (headers->protocol == IPPROTO_UDP)
        return parse_udp(view, headers, cut);
    if (headers->protocol == IPPROTO_SCTP) /* RFC 9260 3.1 */
        return parse_ports(view, headers, 12, cut);
    if (headers->protocol == IPPROTO_ICMP && headers->ip_version == 4) /* RFC 792: no message is shorter */
        return parse_icmp(view, headers, 8, cut);
    if (headers->protocol == IPPROTO_ICMPV6 && headers->ip_version == 6) /* RFC 4443 2.1 */
        return parse_icmp(view, headers, 4, cut);
    return RWAY_WELL_FORMED;
}

/* What lies at offset is the fragment that starts at unit times 8 bytes of its datagram. */
static int note_fragment(const struct view *view, struct rway_headers *headers, uint32_t offset, uint32_t unit,
                         bool more, uint8_t protocol)
{
    /* Reassembled past 64 KiB: the receiver's trouble, and no honest sender's packet. */
    if (unit * 8 + (view->end - offset) > IP_MAX)
        return RWAY_MALFORMED_FRAGMENT;
    /* RFC 1858, RFC 3128: bytes 8 to 15 of a TCP header would overwrite the flags that the first fragment showed. */
    if (unit == 1 && protocol == IPPROTO_TCP)
        return RWAY_MALFORMED_FRAGMENT;
    if (unit != 0)
        headers->flags |= RWAY_HEADERS_LATER_FRAGMENT;
    else if (more)
        headers->flags |= RWAY_HEADERS_FIRST_FRAGMENT;
    return RWAY_WELL_FORMED;
}

/* RFC 791 3.1. Source routes are refused as RFC 7126 4.3 and 4.4 recommend: rules would judge a stop on the way. */
static int check_ip4_options(const uint8_t *option, uint32_t left)
{
    enum { END = 0, NO_OPERATION = 1, LOOSE_SOURCE_ROUTE = 131, STRICT_SOURCE_ROUTE = 137 };

    while (left > 0 && option[0] != END) {
        uint32_t len = option[0] == NO_OPERATION ? 1 : left < 2 ? 0 : option[1];

        if (option[0] == LOOSE_SOURCE_ROUTE || option[0] == STRICT_SOURCE_ROUTE)
            return RWAY_MALFORMED_SOURCE_ROUTE;
        if (len > left || (option[0] != NO_OPERATION && len < 2))
            return RWAY_MALFORMED_IP_OPTIONS;
        option += len;
        left -= len;
    }
    return RWAY_WELL_FORMED;
}

/* From here on the packet ends where IP says: padding behind it must not be taken for a transport header. */
static int bound_packet(struct view *view, uint32_t l3_offset, uint32_t header_len, uint32_t packet_len)
{
    if (packet_len < header_len || packet_len > view->end - l3_offset)
        return RWAY_MALFORMED_IP_LENGTH;
    view->end = l3_offset + packet_len;
    return RWAY_WELL_FORMED;
}

static int parse_ip4_packet(struct view *view, struct rway_headers *headers, uint32_t header_len)
{
    const uint8_t *bytes = view->bytes + headers->l3_offset;
    uint32_t fragment = read16(bytes + 6);
    int cause = bound_packet(view, headers->l3_offset, header_len, read16(bytes + 2));

    if (cause == RWAY_WELL_FORMED)
        cause = check_ip4_options(bytes + IP4_HEADER, header_len - IP4_HEADER);
    if (cause != RWAY_WELL_FORMED)
        return cause;
    headers->ip_version = 4;
    headers->protocol = bytes[9];
    memcpy(headers->source, bytes + 12, 4);
    memcpy(headers->destination, bytes + 16, 4);
    headers->l4_offset = (uint16_t)(headers->l3_offset + header_len);
    cause = note_fragment(view, headers, headers->l4_offset, fragment & 0x1fff, fragment & 0x2000, headers->protocol);
    if (cause != RWAY_WELL_FORMED || headers->flags & RWAY_HEADERS_LATER_FRAGMENT)
        return cause;
    return parse_transport(view, headers);
}

static int parse_ip4(struct view *view, struct rway_headers *headers)
{
    const uint8_t *bytes = view->bytes + headers->l3_offset;
    int cause = need(view, headers->l3_offset, IP4_HEADER, RWAY_MALFORMED_IP_HEADER);
    uint32_t header_len;

    if (cause != RWAY_WELL_FORMED)
        return cause;
    if (bytes[0] >> 4 != 4)
        return RWAY_MALFORMED_IP_VERSION;
    header_len = (bytes[0] & 15) * 4u;
    if (header_len < IP4_HEADER)
        return RWAY_MALFORMED_IP_HEADER;
    cause = need(view, headers->l3_offset, header_len, RWAY_MALFORMED_IP_HEADER);
    return cause == RWAY_WELL_FORMED ? parse_ip4_packet(view, headers, header_len) : cause;
}

static bool is_extension(uint8_t protocol)
{
    return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
           protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_AH;
}

/* RFC 8200 4.2 to 4.6, RFC 4302 2.2. Each kind is at least 8 bytes long. */
static uint32_t extension_len(uint8_t kind, const uint8_t *bytes)
{
    if (kind == IPPROTO_FRAGMENT)
        return 8;
    return kind == IPPROTO_AH ? (bytes[1] + 2) * 4u : (bytes[1] + 1) * 8u;
}

static int check_extension(const struct view *view, struct rway_headers *headers, uint8_t kind, uint32_t position,
                           uint32_t offset)
{
    const uint8_t *bytes = view->bytes + offset;

    if (kind == IPPROTO_HOPOPTS && position != 0)
        return RWAY_MALFORMED_EXTENSION; /* RFC 8200 4.1 */
    if (kind == IPPROTO_AH && bytes[1] == 0)
        return RWAY_MALFORMED_EXTENSION; /* its fixed fields alone are 12 bytes */
    if (kind == IPPROTO_ROUTING && bytes[2] == 0 && bytes[3] != 0)
        return RWAY_MALFORMED_SOURCE_ROUTE; /* RFC 5095 3: type 0 with segments left */
    if (kind != IPPROTO_FRAGMENT)
        return RWAY_WELL_FORMED;
    if (headers->flags & RWAY_HEADERS_FIRST_FRAGMENT)
        return RWAY_MALFORMED_FRAGMENT;
    return note_fragment(view, headers, offset + 8, read16(bytes + 2) >> 3, bytes[3] & 1, bytes[0]);
}

/* Walk to the transport header, or to a later fragment's data. RFC 7112: a first fragment has the whole chain. */
static int parse_extensions(const struct view *view, struct rway_headers *headers, uint8_t kind, uint32_t offset)
{
    for (uint32_t position = 0; is_extension(kind); position++) {
        bool fragment = headers->flags & RWAY_HEADERS_FIRST_FRAGMENT;
        int cut = fragment ? RWAY_MALFORMED_TINY_FRAGMENT : RWAY_MALFORMED_EXTENSION;
        int cause = position < EXTENSIONS_MAX ? need(view, offset, 8, cut) : RWAY_MALFORMED_EXTENSION;
        uint32_t len = 0;

        if (cause == RWAY_WELL_FORMED) {
            len = extension_len(kind, view->bytes + offset);
            cause = need(view, offset, len, cut);
        }
        if (cause == RWAY_WELL_FORMED)
            cause = check_extension(view, headers, kind, position, offset);
        if (cause != RWAY_WELL_FORMED)
            return cause;
        kind = view->bytes[offset];
        offset += len;
        if (headers->flags & RWAY_HEADERS_LATER_FRAGMENT)
            break;
    }
    headers->protocol = kind;
    headers->l4_offset = (uint16_t)offset;
    return headers->flags & RWAY_HEADERS_LATER_FRAGMENT ? RWAY_WELL_FORMED : parse_transport(view, headers);
}

static int parse_ip6(struct view *view, struct rway_headers *headers)
{
    const uint8_t *bytes = view->bytes + headers->l3_offset;
    int cause = need(view, headers->l3_offset, IP6_HEADER, RWAY_MALFORMED_IP_HEADER);

    if (cause != RWAY_WELL_FORMED)
        return cause;
    if (bytes[0] >> 4 != 6)
        return RWAY_MALFORMED_IP_VERSION;
    if (read16(bytes + 4) == 0 && bytes[6] == IPPROTO_HOPOPTS)
        return RWAY_MALFORMED_JUMBOGRAM; /* RFC 2675 3: the length is in an option */
    cause = bound_packet(view, headers->l3_offset, IP6_HEADER, IP6_HEADER + (uint32_t)read16(bytes + 4));
    if (cause != RWAY_WELL_FORMED)
        return cause;
    headers->ip_version = 6;
    memcpy(headers->source, bytes + 8, 16);
    memcpy(headers->destination, bytes + 24, 16);
    return parse_extensions(view, headers, bytes[6], headers->l3_offset + IP6_HEADER);
}

/* RFC 826. Addresses of other kinds pass if they are inside the frame. */
static int parse_arp(const struct view *view, const struct rway_headers *headers)
{
    const uint8_t *bytes = view->bytes + headers->l3_offset;
    int cause = need(view, headers->l3_offset, 8, RWAY_MALFORMED_ARP);

    if (cause != RWAY_WELL_FORMED)
        return cause;
    if ((read16(bytes) == 1 && bytes[4] != 6) || (read16(bytes + 2) == RWAY_ETHER_IP4 && bytes[5] != 4))
        return RWAY_MALFORMED_ARP;
    return need(view, headers->l3_offset, 8 + 2u * (bytes[4] + bytes[5]), RWAY_MALFORMED_ARP);
}

static bool is_vlan(uint16_t ether)
{
    return ether == RWAY_ETHER_VLAN || ether == RWAY_ETHER_QINQ;
}

/* A third tag is refused: receivers differ in how many they take off, so one of them would find another packet. */
static int parse_ethernet(const struct view *view, struct rway_headers *headers)
{
    uint32_t offset = RWAY_ETHER_HEADER;
    int cause = need(view, 0, RWAY_ETHER_HEADER, RWAY_MALFORMED_ETHERNET);

    if (cause != RWAY_WELL_FORMED)
        return cause;
    headers->ether = read16(view->bytes + offset - 2);
    while (is_vlan(headers->ether)) {
        if (headers->vlan_count == VLANS_MAX || need(view, offset, VLAN_TAG, RWAY_MALFORMED_VLAN) != RWAY_WELL_FORMED)
            return RWAY_MALFORMED_VLAN;
        if (headers->vlan == 0) /* id 0 is a priority and no VLAN */
            headers->vlan = read16(view->bytes + offset) & 0x0fff;
        offset += VLAN_TAG;
        headers->vlan_count++;
        headers->ether = read16(view->bytes + offset - 2);
    }
    if (headers->ether < RWAY_ETHER_TYPES)
        headers->ether = 0;
    headers->l3_offset = (uint16_t)offset;
    return RWAY_WELL_FORMED;
}

/*
 * Most frames: no tag, IPv4 without options and no fragment, UDP or TCP, all of it here and well-formed. Says of them
 * what the parsers above say, at a third of their cost; of any other frame it says nothing (false), and they decide.
 */
static bool parse_plain(const struct view *view, struct rway_headers *headers)
{
    enum { IP_AT = RWAY_ETHER_HEADER, L4_AT = IP_AT + IP4_HEADER, TCP_HEADER = 20 };
    const uint8_t *ip = view->bytes + IP_AT, *l4 = view->bytes + L4_AT;
    if (view->copied < L4_AT + TCP_HEADER || read16(ip - 2) != RWAY_ETHER_IP4 || ip[0] != 0x45 ||
        read16(ip + 6) & 0x3fff)
        return false;
    uint32_t packet_len = read16(ip + 2), l4_len = 8;
    if (packet_len < IP4_HEADER + l4_len || packet_len > view->end - IP_AT)
        return false;
    if (ip[9] == IPPROTO_UDP) {
        uint32_t length = read16(l4 + 4);
        if (length < l4_len || length > packet_len - IP4_HEADER)
            return false;
    } else if (ip[9] == IPPROTO_TCP) {
        l4_len = (l4[12] >> 4) * 4u;
        if (l4_len < TCP_HEADER || l4_len > packet_len - IP4_HEADER || L4_AT + l4_len > view->copied)
            return false;
        headers->tcp_flags = l4[13];
    } else {
        return false;
    }
    headers->ether = RWAY_ETHER_IP4;
    headers->l3_offset = IP_AT;
    headers->l4_offset = L4_AT;
    headers->l4_len = (uint16_t)l4_len;
    headers->payload_offset = (uint16_t)(L4_AT + l4_len);
    headers->source_port = read16(l4);
    headers->destination_port = read16(l4 + 2);
    headers->ip_version = 4;
    headers->protocol = ip[9];
    headers->flags = RWAY_HEADERS_PORTS;
    memcpy(headers->source, ip + 12, 4);
    memcpy(headers->destination, ip + 16, 4);
    return true;
}

int rway_parse(const uint8_t *bytes, uint32_t copied, uint32_t frame_len, struct rway_headers *out)
{
    struct view view = {bytes, smaller(smaller(copied, frame_len), RWAY_HEADERS_MAX), frame_len};
    int cause;

    memset(out, 0, sizeof(*out));
    if (parse_plain(&view, out))
        return RWAY_WELL_FORMED;
    cause = parse_ethernet(&view, out);
    if (cause == RWAY_WELL_FORMED && out->ether == RWAY_ETHER_ARP)
        cause = parse_arp(&view, out);
    else if (cause == RWAY_WELL_FORMED && out->ether == RWAY_ETHER_IP4)
        cause = parse_ip4(&view, out);
    else if (cause == RWAY_WELL_FORMED && out->ether == RWAY_ETHER_IP6)
        cause = parse_ip6(&view, out);
    if (cause != RWAY_WELL_FORMED)
        memset(out, 0, sizeof(*out));
    else
        out->payload_offset = (uint16_t)(out->l4_offset + out->l4_len);
    return cause;
}
