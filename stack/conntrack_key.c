/*
 * Which connection a frame belongs to: from its own headers, or from those of the packet that an ICMP error is about.
 *
 * Only private copies of bytes are read here. A frame of which the key cannot be told is of no connection, and rules
 * alone decide over it.
 */
#include <string.h>

#include "conntrack.h"
#include "ip6_chain.h"

enum {
    ECHO_REPLY = 0, /* RFC 792 */
    UNREACHABLE = 3,
    ECHO_REQUEST = 8,
    TIME_EXCEEDED = 11,
    PARAMETER_PROBLEM = 12,
    LAST_ERROR6 = 4, /* RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem */
    ECHO_REQUEST6 = 128,
    ECHO_REPLY6 = 129,
    ICMP_HEADER = 8, /* of errors and echoes, both versions */
    TAG = 4,
    VLAN_ID = 0x0fff
};

/* One end of a connection. */
struct end {
    uint64_t address[2];
    uint16_t port;
    uint16_t side; /* number of the port by which it is reached */
};

static uint16_t read16(const uint8_t *bytes)
{
    return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

/* Any order will do that is the same for both directions. */
static bool is_lower(const struct end *one, const struct end *other)
{
    if (one->address[0] != other->address[0])
        return one->address[0] < other->address[0];
    if (one->address[1] != other->address[1])
        return one->address[1] < other->address[1];
    if (one->port != other->port)
        return one->port < other->port;
    return one->side < other->side;
}

static bool join(const struct end *source, const struct end *destination, uint64_t rest, struct rway_conntrack_key *key)
{
    bool from_low = is_lower(source, destination);
    const struct end *low = from_low ? source : destination;
    const struct end *high = from_low ? destination : source;

    key->words[0] = low->address[0];
    key->words[1] = low->address[1];
    key->words[2] = high->address[0];
    key->words[3] = high->address[1];
    key->words[4] = low->port | (uint64_t)high->port << 16 | (uint64_t)low->side << 32 | (uint64_t)high->side << 48;
    key->words[5] = rest;
    return from_low;
}

uint32_t rway_conntrack_vlan_ids(const struct rway_judged *frame)
{
    uint32_t ids = frame->vlan & VLAN_ID;

    for (uint32_t tag = 0; tag < frame->headers->vlan_count; tag++)
        ids = ids << 12 | (read16(frame->bytes + RWAY_ETHER_HEADER + tag * TAG) & VLAN_ID);
    return ids;
}

static uint64_t rest_of(const struct rway_judged *frame, uint8_t protocol)
{
    return rway_conntrack_vlan_ids(frame) | (uint64_t)protocol << 32 | (uint64_t)frame->headers->ip_version << 40;
}

/* The first bytes of an ICMP or ICMPv6 message, or NULL when the frame holds no whole header of one. */
static const uint8_t *icmp_of(const struct rway_judged *frame)
{
    const struct rway_headers *headers = frame->headers;
    bool icmp = (headers->ip_version == 4 && headers->protocol == IPPROTO_ICMP) ||
                (headers->ip_version == 6 && headers->protocol == IPPROTO_ICMPV6);

    if (!icmp || headers->l4_len == 0 || headers->flags & RWAY_HEADERS_LATER_FRAGMENT)
        return NULL;
    return headers->l4_offset + (uint32_t)ICMP_HEADER <= frame->copied ? frame->bytes + headers->l4_offset : NULL;
}

/* An echo's identifier (RFC 792, RFC 4443 4) is the port of the end that asks; the end that answers has port 0. */
static bool echo_ports(const uint8_t *icmp, uint8_t ip_version, uint16_t *source, uint16_t *destination)
{
    bool request = icmp[0] == (ip_version == 4 ? ECHO_REQUEST : ECHO_REQUEST6);
    bool reply = icmp[0] == (ip_version == 4 ? ECHO_REPLY : ECHO_REPLY6);

    *source = request ? read16(icmp + 4) : 0;
    *destination = reply ? read16(icmp + 4) : 0;
    return request || reply;
}

bool rway_conntrack_key_of(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port,
                           struct rway_conntrack_key *key, bool *from_low)
{
    const struct rway_headers *headers = frame->headers;
    struct end source = {.port = headers->source_port, .side = (uint16_t)in_port};
    struct end destination = {.port = headers->destination_port, .side = (uint16_t)out_port};

    if (!(headers->flags & RWAY_HEADERS_PORTS)) {
        const uint8_t *icmp = icmp_of(frame);

        if (!icmp || !echo_ports(icmp, headers->ip_version, &source.port, &destination.port))
            return false;
    }
    memcpy(source.address, headers->source, sizeof(source.address));
    memcpy(destination.address, headers->destination, sizeof(destination.address));
    *from_low = join(&source, &destination, rest_of(frame, headers->protocol), key);
    return true;
}

/* ---- errors ---- */

static bool is_error(uint8_t type, uint8_t ip_version)
{
    if (ip_version == 6)
        return type >= 1 && type <= LAST_ERROR6;
    return type == UNREACHABLE || type == TIME_EXCEEDED || type == PARAMETER_PROBLEM;
}

/* A packet inside an error: RFC 792 has its IP header and 8 bytes, RFC 4443 as much as fits. */
struct embedded {
    const uint8_t *bytes;
    uint32_t len; /* bytes that are here */
    uint32_t l4;  /* where its transport header begins */
    uint8_t protocol;
};

/* IPv6: walked within the bytes that are here. A packet that is a later fragment has no ports. */
static bool skip_extensions(struct embedded *packet)
{
    struct rway_ip6_chain chain;

    if (!rway_ip6_walk(packet->bytes, packet->len, &chain) ||
        (chain.fragment != 0 && read16(packet->bytes + chain.fragment + 2) >> 3 != 0))
        return false;
    packet->l4 = chain.end;
    packet->protocol = chain.protocol;
    return true;
}

/* An error about a later fragment, or with less than its headers, is left to the rules. */
static bool read_embedded(struct embedded *packet, uint8_t ip_version, struct end *source, struct end *destination)
{
    const uint8_t *bytes = packet->bytes;

    if (packet->len < (ip_version == 4 ? 20u : 40u) || bytes[0] >> 4 != ip_version)
        return false;
    if (ip_version == 6) {
        memcpy(source->address, bytes + 8, 16);
        memcpy(destination->address, bytes + 24, 16);
        return skip_extensions(packet);
    }
    packet->l4 = (bytes[0] & 15) * 4u;
    packet->protocol = bytes[9];
    memcpy(source->address, bytes + 12, 4);
    memcpy(destination->address, bytes + 16, 4);
    return packet->l4 >= 20 && (read16(bytes + 6) & 0x1fff) == 0;
}

static bool read_embedded_ports(const struct embedded *packet, uint8_t ip_version, struct end *source,
                                struct end *destination)
{
    const uint8_t *l4 = packet->bytes + packet->l4;

    if (packet->len < packet->l4 + ICMP_HEADER)
        return false;
    if (packet->protocol == (ip_version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
        return echo_ports(l4, ip_version, &source->port, &destination->port);
    source->port = read16(l4);
    destination->port = read16(l4 + 2);
    return packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP || packet->protocol == IPPROTO_SCTP;
}

/* The packet that it is about went the other way, and the error is for its sender. */
bool rway_conntrack_key_of_error(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port,
                                 struct rway_conntrack_key *key)
{
    const struct rway_headers *headers = frame->headers;
    const uint8_t *icmp = icmp_of(frame);
    struct end source = {.side = (uint16_t)out_port};
    struct end destination = {.side = (uint16_t)in_port};
    struct embedded packet;

    if (!icmp || !is_error(icmp[0], headers->ip_version) || headers->flags & RWAY_HEADERS_FIRST_FRAGMENT)
        return false;
    packet = (struct embedded){.bytes = icmp + ICMP_HEADER, .len = frame->copied - headers->l4_offset - ICMP_HEADER};
    if (!read_embedded(&packet, headers->ip_version, &source, &destination) ||
        !read_embedded_ports(&packet, headers->ip_version, &source, &destination))
        return false;
    if (memcmp(source.address, headers->destination, sizeof(source.address)) != 0)
        return false;
    join(&source, &destination, rest_of(frame, packet.protocol), key);
    return true;
}

/* ---- asking rules about a connection ---- */

/* Of the ids as vlan_ids has them: the first one that is none of a priority tag. */
static uint16_t outermost_vlan(uint32_t ids)
{
    uint16_t outer = ids >> 12 & VLAN_ID;

    return outer != 0 ? outer : ids & VLAN_ID;
}

uint32_t rway_conntrack_headers(const struct rway_conntrack_key *key, bool from_low, uint8_t tcp_flags,
                                struct rway_headers *headers)
{
    const uint64_t *words = key->words;
    uint8_t ip_version = (uint8_t)(words[5] >> 40);
    uint8_t protocol = rway_conntrack_protocol(key);
    bool ports = protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6;

    *headers = (struct rway_headers){
        .ether = ip_version == 4 ? RWAY_ETHER_IP4 : RWAY_ETHER_IP6,
        .ip_version = ip_version,
        .protocol = protocol,
        .tcp_flags = tcp_flags,
        .flags = ports ? RWAY_HEADERS_PORTS : RWAY_HEADERS_ICMP,
        .icmp_type = ports             ? 0
                     : ip_version == 4 ? ECHO_REQUEST
                                       : ECHO_REQUEST6, /* what opens one: rway_conntrack_opens */
        .vlan = outermost_vlan((uint32_t)words[5]),
        .source_port = (uint16_t)(words[4] >> (from_low ? 0 : 16)),
        .destination_port = (uint16_t)(words[4] >> (from_low ? 16 : 0)),
    };
    memcpy(headers->source, words + (from_low ? 0 : 2), sizeof(headers->source));
    memcpy(headers->destination, words + (from_low ? 2 : 0), sizeof(headers->destination));
    return (uint16_t)(words[4] >> (from_low ? 32 : 48));
}

bool rway_conntrack_opens(const struct rway_judged *frame)
{
    const uint8_t *icmp = icmp_of(frame);

    return !icmp || icmp[0] == (frame->headers->ip_version == 4 ? ECHO_REQUEST : ECHO_REQUEST6);
}
