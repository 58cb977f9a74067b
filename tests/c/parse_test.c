/* Headers of every kind that stack/parse.c reads, and each way in which they can be malformed. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "stack.h"

/* A frame under construction. */
struct frame {
    uint8_t bytes[1024];
    uint32_t len;
};

static uint8_t *add(struct frame *frame, uint32_t len)
{
    uint8_t *at = frame->bytes + frame->len;

    frame->len += len;
    return at;
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static struct frame ethernet(uint16_t type)
{
    struct frame frame = {.len = 0};

    put16(add(&frame, 14) + 12, type);
    return frame;
}

/* The type that the tag announces; the tag's own type stands before it. */
static void add_vlan(struct frame *frame, uint16_t type)
{
    put16(add(frame, 4) + 2, type);
}

static uint8_t *add_ip4(struct frame *frame, uint8_t protocol, uint32_t options, uint32_t payload)
{
    uint8_t *ip = add(frame, 20 + options);

    ip[0] = (uint8_t)(0x40 | (20 + options) / 4);
    put16(ip + 2, 20 + options + payload);
    ip[9] = protocol;
    memcpy(ip + 12, "\x0a\x01\x02\x03\x0a\x04\x05\x06", 8);
    return ip;
}

static uint8_t *add_ip6(struct frame *frame, uint8_t next, uint32_t payload)
{
    uint8_t *ip = add(frame, 40);

    ip[0] = 0x60;
    put16(ip + 4, payload);
    ip[6] = next;
    ip[8] = 0xfd;
    ip[23] = 1;
    ip[24] = 0xfd;
    ip[39] = 2;
    return ip;
}

/* An extension header of units times 8 bytes; for AH give its length field in units. */
static uint8_t *add_extension(struct frame *frame, uint8_t next, uint32_t units)
{
    uint8_t *header = add(frame, units * 8);

    header[0] = next;
    header[1] = (uint8_t)(units - 1);
    return header;
}

static uint8_t *add_fragment_header(struct frame *frame, uint8_t next, uint32_t unit, uint32_t more)
{
    uint8_t *header = add(frame, 8);

    header[0] = next;
    put16(header + 2, unit << 3 | more);
    return header;
}

static uint8_t *add_tcp(struct frame *frame, uint32_t options)
{
    uint8_t *tcp = add(frame, 20 + options);

    put16(tcp, 1234);
    put16(tcp + 2, 80);
    tcp[12] = (uint8_t)((20 + options) / 4 << 4);
    tcp[13] = 0x12;
    return tcp;
}

static uint8_t *add_udp(struct frame *frame, uint32_t payload)
{
    uint8_t *udp = add(frame, 8 + payload);

    put16(udp, 5353);
    put16(udp + 2, 53);
    put16(udp + 4, 8 + payload);
    return udp;
}

/* Parses an exact copy on the heap, so that a sanitizer sees a read behind it. */
static int parse_copied(const struct frame *frame, uint32_t copied, struct rway_headers *headers)
{
    uint8_t *copy = malloc(copied + (copied == 0));
    int cause;

    memcpy(copy, frame->bytes, copied);
    cause = rway_parse(copy, copied, frame->len, headers);
    free(copy);
    return cause;
}

static int parse(const struct frame *frame, struct rway_headers *headers)
{
    return parse_copied(frame, frame->len < RWAY_HEADERS_MAX ? frame->len : RWAY_HEADERS_MAX, headers);
}

static int cause_of(const struct frame *frame)
{
    struct rway_headers headers;
    struct rway_headers zero;
    int cause = parse(frame, &headers);

    memset(&zero, 0, sizeof(zero));
    if (cause != RWAY_WELL_FORMED)
        EXPECT(memcmp(&headers, &zero, sizeof(zero)) == 0);
    return cause;
}

static void tcp_over_ip4_is_read(void)
{
    struct frame frame = ethernet(0x0800);
    struct rway_headers headers;

    add_ip4(&frame, IPPROTO_TCP, 0, 32 + 7);
    add_tcp(&frame, 12);
    add(&frame, 7);
    EXPECT(parse(&frame, &headers) == RWAY_WELL_FORMED);
    EXPECT(headers.ether == 0x0800 && headers.ip_version == 4 && headers.protocol == IPPROTO_TCP);
    EXPECT(headers.l3_offset == 14 && headers.l4_offset == 34 && headers.l4_len == 32 && headers.payload_offset == 66);
    EXPECT(headers.source_port == 1234 && headers.destination_port == 80 && headers.tcp_flags == 0x12);
    EXPECT(headers.flags == RWAY_HEADERS_PORTS && headers.vlan_count == 0);
    EXPECT(memcmp(headers.source, "\x0a\x01\x02\x03\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0);
    EXPECT(memcmp(headers.destination, "\x0a\x04\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0);
}

static void the_longest_ordinary_headers_are_read(void)
{
    struct frame frame = ethernet(0x88a8);
    struct rway_headers headers;

    add_vlan(&frame, 0x8100);
    add_vlan(&frame, 0x0800);
    memset(add_ip4(&frame, IPPROTO_TCP, 40, 60) + 20, 1, 40);
    add_tcp(&frame, 40);
    EXPECT(frame.len == 142);
    EXPECT(parse(&frame, &headers) == RWAY_WELL_FORMED);
    EXPECT(headers.vlan_count == 2 && headers.l3_offset == 22);
    EXPECT(headers.l4_offset == 82 && headers.payload_offset == 142);
}

static void udp_behind_ip6_extension_headers_is_read(void)
{
    struct frame frame = ethernet(0x8100);
    struct rway_headers headers;

    add_vlan(&frame, 0x86dd);
    add_ip6(&frame, IPPROTO_HOPOPTS, 8 + 16 + 16 + 24 + 8 + 5);
    add_extension(&frame, IPPROTO_DSTOPTS, 1);
    add_extension(&frame, IPPROTO_ROUTING, 2);
    add_extension(&frame, IPPROTO_AH, 2)[2] = 4;  /* segment routing passes */
    add_extension(&frame, IPPROTO_UDP, 3)[1] = 4; /* AH counts 4-byte units, less 2 */
    add_udp(&frame, 5);
    EXPECT(parse(&frame, &headers) == RWAY_WELL_FORMED);
    EXPECT(headers.ether == 0x86dd && headers.ip_version == 6 && headers.protocol == IPPROTO_UDP);
    EXPECT(headers.l3_offset == 18 && headers.l4_offset == 18 + 40 + 64 && headers.l4_len == 8);
    EXPECT(headers.source_port == 5353 && headers.destination_port == 53 && headers.flags == RWAY_HEADERS_PORTS);
    EXPECT(headers.source[0] == 0xfd && headers.source[15] == 1 && headers.destination[15] == 2);
}

static void icmp_and_sctp_are_read_in_their_families(void)
{
    struct frame icmp = ethernet(0x0800);
    struct frame icmp6 = ethernet(0x86dd);
    struct frame sctp = ethernet(0x0800);
    struct frame strange = ethernet(0x86dd);
    struct rway_headers headers;

    add_ip4(&icmp, IPPROTO_ICMP, 0, 8);
    add(&icmp, 8);
    EXPECT(parse(&icmp, &headers) == RWAY_WELL_FORMED && headers.l4_len == 8);
    EXPECT(headers.flags == RWAY_HEADERS_ICMP && headers.icmp_type == 0 && headers.icmp_code == 0);
    add_ip6(&icmp6, IPPROTO_ICMPV6, 4);
    add(&icmp6, 4);
    EXPECT(parse(&icmp6, &headers) == RWAY_WELL_FORMED && headers.l4_len == 4 && headers.flags == RWAY_HEADERS_ICMP);
    add_ip4(&sctp, IPPROTO_SCTP, 0, 12);
    put16(add(&sctp, 12) + 2, 38412);
    EXPECT(parse(&sctp, &headers) == RWAY_WELL_FORMED && headers.l4_len == 12 && headers.destination_port == 38412);
    add_ip6(&strange, IPPROTO_ICMP, 1);
    add(&strange, 1);
    EXPECT(parse(&strange, &headers) == RWAY_WELL_FORMED && headers.l4_len == 0 && headers.protocol == IPPROTO_ICMP);
}

static void frames_that_are_not_ip_pass_as_such(void)
{
    struct frame length = ethernet(100);
    struct frame unknown = ethernet(0x88cc);
    struct frame arp = ethernet(0x0806);
    struct rway_headers headers;

    EXPECT(parse(&length, &headers) == RWAY_WELL_FORMED && headers.ether == 0 && headers.l3_offset == 14);
    EXPECT(parse(&unknown, &headers) == RWAY_WELL_FORMED && headers.ether == 0x88cc && headers.ip_version == 0);
    memcpy(add(&arp, 28), "\0\x01\x08\0\x06\x04\0\x01", 8);
    EXPECT(parse(&arp, &headers) == RWAY_WELL_FORMED && headers.ether == 0x0806 && headers.l4_offset == 0);
}

static void an_ip6_packet_without_anything_passes(void)
{
    struct frame frame = ethernet(0x86dd);
    struct rway_headers headers;

    add_ip6(&frame, IPPROTO_NONE, 0);
    EXPECT(parse(&frame, &headers) == RWAY_WELL_FORMED && headers.protocol == IPPROTO_NONE && headers.l4_offset == 54);
}

static void fragments_are_told_apart(void)
{
    struct frame first = ethernet(0x0800);
    struct frame later = ethernet(0x0800);
    struct frame later6 = ethernet(0x86dd);
    struct frame whole6 = ethernet(0x86dd);
    struct rway_headers headers;

    put16(add_ip4(&first, IPPROTO_UDP, 0, 16) + 6, 0x2000);
    put16(add_udp(&first, 8) + 4, 4000); /* the whole datagram's length */
    EXPECT(parse(&first, &headers) == RWAY_WELL_FORMED);
    EXPECT(headers.flags == (RWAY_HEADERS_PORTS | RWAY_HEADERS_FIRST_FRAGMENT) && headers.destination_port == 53);
    put16(add_ip4(&later, IPPROTO_TCP, 0, 2) + 6, 0x2002);
    add(&later, 2);
    EXPECT(parse(&later, &headers) == RWAY_WELL_FORMED);
    EXPECT(headers.flags == RWAY_HEADERS_LATER_FRAGMENT && headers.l4_offset == 34 && headers.l4_len == 0);
    add_ip6(&later6, IPPROTO_FRAGMENT, 10);
    add_fragment_header(&later6, IPPROTO_DSTOPTS, 200, 0);
    memset(add(&later6, 2), 0xff, 2); /* data that would be no extension header */
    EXPECT(parse(&later6, &headers) == RWAY_WELL_FORMED);
    EXPECT(headers.flags == RWAY_HEADERS_LATER_FRAGMENT && headers.protocol == IPPROTO_DSTOPTS);
    add_ip6(&whole6, IPPROTO_FRAGMENT, 8 + 20); /* RFC 6946: an atomic fragment is a whole packet */
    add_fragment_header(&whole6, IPPROTO_TCP, 0, 0);
    add_tcp(&whole6, 0);
    EXPECT(parse(&whole6, &headers) == RWAY_WELL_FORMED && headers.flags == RWAY_HEADERS_PORTS);
}

static void padding_is_no_transport_header(void)
{
    struct frame frame = ethernet(0x0800);

    add_ip4(&frame, IPPROTO_TCP, 0, 4);
    add_tcp(&frame, 0);
    EXPECT(cause_of(&frame) == RWAY_MALFORMED_TRANSPORT);
}

static void a_frame_shorter_than_its_headers_is_malformed(void)
{
    struct frame tcp4 = ethernet(0x8100);
    struct frame udp6 = ethernet(0x86dd);
    struct frame arp = ethernet(0x0806);

    add_vlan(&tcp4, 0x0800);
    add_ip4(&tcp4, IPPROTO_TCP, 4, 24);
    add_tcp(&tcp4, 4);
    add_ip6(&udp6, IPPROTO_DSTOPTS, 16);
    add_extension(&udp6, IPPROTO_UDP, 1);
    add_udp(&udp6, 0);
    memcpy(add(&arp, 28), "\0\x01\x08\0\x06\x04\0\x01", 8);
    for (; tcp4.len > 0; tcp4.len--)
        EXPECT((cause_of(&tcp4) == RWAY_WELL_FORMED) == (tcp4.len == 14 + 4 + 24 + 24));
    for (; udp6.len > 0; udp6.len--)
        EXPECT((cause_of(&udp6) == RWAY_WELL_FORMED) == (udp6.len == 14 + 40 + 8 + 8));
    for (; arp.len > 0; arp.len--)
        EXPECT((cause_of(&arp) == RWAY_WELL_FORMED) == (arp.len == 14 + 28));
}

static void bytes_that_were_not_copied_are_too_long_not_absent(void)
{
    struct frame frame = ethernet(0x0800);
    struct rway_headers headers;

    add_ip4(&frame, IPPROTO_TCP, 0, 20);
    add_tcp(&frame, 0);
    for (uint32_t copied = 14; copied < frame.len; copied++)
        EXPECT(parse_copied(&frame, copied, &headers) == RWAY_MALFORMED_TOO_LONG);
}

static void a_third_vlan_tag_is_malformed(void)
{
    struct frame frame = ethernet(0x8100);

    add_vlan(&frame, 0x88a8);
    add_vlan(&frame, 0x8100);
    add_vlan(&frame, 0x0800);
    add_ip4(&frame, IPPROTO_NONE, 0, 0);
    EXPECT(cause_of(&frame) == RWAY_MALFORMED_VLAN);
}

static void arp_with_wrong_address_lengths_is_malformed(void)
{
    struct frame hardware = ethernet(0x0806);
    struct frame protocol = ethernet(0x0806);

    memcpy(add(&hardware, 60), "\0\x01\x08\0\x08\x04\0\x01", 8);
    memcpy(add(&protocol, 60), "\0\x01\x08\0\x06\x10\0\x01", 8);
    EXPECT(cause_of(&hardware) == RWAY_MALFORMED_ARP);
    EXPECT(cause_of(&protocol) == RWAY_MALFORMED_ARP);
}

/* A well-formed TCP packet over IPv4 with one byte of its IP header changed. */
static int cause_with_ip4_byte(uint32_t at, uint8_t value)
{
    struct frame frame = ethernet(0x0800);

    add_ip4(&frame, IPPROTO_TCP, 0, 20)[at] = value;
    add_tcp(&frame, 0);
    return cause_of(&frame);
}

static void ip4_headers_that_contradict_themselves_are_malformed(void)
{
    EXPECT(cause_with_ip4_byte(0, 0x45) == RWAY_WELL_FORMED);
    EXPECT(cause_with_ip4_byte(0, 0x65) == RWAY_MALFORMED_IP_VERSION);
    EXPECT(cause_with_ip4_byte(0, 0x44) == RWAY_MALFORMED_IP_HEADER);
    EXPECT(cause_with_ip4_byte(0, 0x4f) == RWAY_MALFORMED_IP_HEADER);
    EXPECT(cause_with_ip4_byte(2, 0x01) == RWAY_MALFORMED_IP_LENGTH);
    EXPECT(cause_with_ip4_byte(3, 19) == RWAY_MALFORMED_IP_LENGTH);
    EXPECT(cause_with_ip4_byte(3, 0) == RWAY_MALFORMED_IP_LENGTH);
}

static int cause_with_ip4_options(const char *options, uint32_t len)
{
    struct frame frame = ethernet(0x0800);

    memcpy(add_ip4(&frame, IPPROTO_NONE, len, 0) + 20, options, len);
    return cause_of(&frame);
}

static void ip4_options_are_walked(void)
{
    EXPECT(cause_with_ip4_options("\x01\x07\x07\x04\0\0\0\0", 8) == RWAY_WELL_FORMED);
    EXPECT(cause_with_ip4_options("\0\x07\x09\x04", 4) == RWAY_WELL_FORMED);
    EXPECT(cause_with_ip4_options("\x07\x00\x04\x01", 4) == RWAY_MALFORMED_IP_OPTIONS);
    EXPECT(cause_with_ip4_options("\x07\x01\x04\x01", 4) == RWAY_MALFORMED_IP_OPTIONS);
    EXPECT(cause_with_ip4_options("\x07\x05\x04\x01", 4) == RWAY_MALFORMED_IP_OPTIONS);
    EXPECT(cause_with_ip4_options("\x01\x01\x01\x07", 4) == RWAY_MALFORMED_IP_OPTIONS);
    EXPECT(cause_with_ip4_options("\x83\x03\x04\x00", 4) == RWAY_MALFORMED_SOURCE_ROUTE);
    EXPECT(cause_with_ip4_options("\x89\x03\x04\x00", 4) == RWAY_MALFORMED_SOURCE_ROUTE);
}

static int cause_of_ip4_fragment(uint8_t protocol, uint32_t field, uint32_t payload)
{
    struct frame frame = ethernet(0x0800);

    put16(add_ip4(&frame, protocol, 0, payload) + 6, field);
    put16(add(&frame, payload) + 12, 0x5000);
    return cause_of(&frame);
}

static void fragments_that_hide_a_header_are_malformed(void)
{
    EXPECT(cause_of_ip4_fragment(IPPROTO_TCP, 0x2000, 24) == RWAY_WELL_FORMED);
    EXPECT(cause_of_ip4_fragment(IPPROTO_TCP, 0x2000, 16) == RWAY_MALFORMED_TINY_FRAGMENT);
    EXPECT(cause_of_ip4_fragment(IPPROTO_ICMP, 0x2000, 0) == RWAY_MALFORMED_TINY_FRAGMENT);
    EXPECT(cause_of_ip4_fragment(IPPROTO_TCP, 0x0001, 24) == RWAY_MALFORMED_FRAGMENT);
    EXPECT(cause_of_ip4_fragment(IPPROTO_UDP, 0x0001, 24) == RWAY_WELL_FORMED);
    EXPECT(cause_of_ip4_fragment(IPPROTO_UDP, 0x1fff, 8) == RWAY_MALFORMED_FRAGMENT);
    EXPECT(cause_of_ip4_fragment(IPPROTO_UDP, 0x1fff, 7) == RWAY_WELL_FORMED);
}

static void an_ip6_first_fragment_without_its_header_chain_is_malformed(void)
{
    struct frame transport = ethernet(0x86dd);
    struct frame chain = ethernet(0x86dd);
    struct frame twice = ethernet(0x86dd);

    add_ip6(&transport, IPPROTO_FRAGMENT, 8 + 16);
    add_fragment_header(&transport, IPPROTO_TCP, 0, 1);
    add_tcp(&transport, 0);
    EXPECT(cause_of(&transport) == RWAY_MALFORMED_TINY_FRAGMENT);
    add_ip6(&chain, IPPROTO_FRAGMENT, 8 + 8);
    add_fragment_header(&chain, IPPROTO_DSTOPTS, 0, 1);
    add_extension(&chain, IPPROTO_TCP, 1)[1] = 2;
    EXPECT(cause_of(&chain) == RWAY_MALFORMED_TINY_FRAGMENT);
    add_ip6(&twice, IPPROTO_FRAGMENT, 16 + 20);
    add_fragment_header(&twice, IPPROTO_FRAGMENT, 0, 1);
    add_fragment_header(&twice, IPPROTO_TCP, 0, 1);
    add_tcp(&twice, 0);
    EXPECT(cause_of(&twice) == RWAY_MALFORMED_FRAGMENT);
}

static void ip6_headers_that_contradict_themselves_are_malformed(void)
{
    struct frame version = ethernet(0x86dd);
    struct frame length = ethernet(0x86dd);
    struct frame jumbo = ethernet(0x86dd);

    add_ip6(&version, IPPROTO_NONE, 0)[0] = 0x40;
    EXPECT(cause_of(&version) == RWAY_MALFORMED_IP_VERSION);
    add_ip6(&length, IPPROTO_NONE, 1);
    EXPECT(cause_of(&length) == RWAY_MALFORMED_IP_LENGTH);
    add_ip6(&jumbo, IPPROTO_HOPOPTS, 0);
    add_extension(&jumbo, IPPROTO_TCP, 1);
    add_tcp(&jumbo, 0);
    EXPECT(cause_of(&jumbo) == RWAY_MALFORMED_JUMBOGRAM);
}

/* count destination options headers, then nothing. */
static int cause_of_chain(uint32_t count, uint32_t units)
{
    struct frame frame = ethernet(0x86dd);

    add_ip6(&frame, IPPROTO_DSTOPTS, count * units * 8);
    for (uint32_t index = 0; index < count; index++)
        add_extension(&frame, index + 1 < count ? IPPROTO_DSTOPTS : IPPROTO_NONE, units);
    return cause_of(&frame);
}

static int cause_of_extension(uint8_t before, uint8_t kind, uint8_t length, uint8_t third, uint8_t fourth)
{
    struct frame frame = ethernet(0x86dd);
    uint8_t *header;

    add_ip6(&frame, before, 16);
    add_extension(&frame, kind, 1);
    header = add_extension(&frame, IPPROTO_NONE, 1);
    header[1] = length;
    header[2] = third;
    header[3] = fourth;
    return cause_of(&frame);
}

static void extension_headers_are_bounded(void)
{
    EXPECT(cause_of_chain(8, 1) == RWAY_WELL_FORMED);
    EXPECT(cause_of_chain(9, 1) == RWAY_MALFORMED_EXTENSION);
    EXPECT(cause_of_chain(5, 5) == RWAY_WELL_FORMED);
    EXPECT(cause_of_chain(6, 5) == RWAY_MALFORMED_TOO_LONG);
    EXPECT(cause_of_extension(IPPROTO_DSTOPTS, IPPROTO_DSTOPTS, 0, 0, 0) == RWAY_WELL_FORMED);
    EXPECT(cause_of_extension(IPPROTO_DSTOPTS, IPPROTO_DSTOPTS, 1, 0, 0) == RWAY_MALFORMED_EXTENSION);
    EXPECT(cause_of_extension(IPPROTO_DSTOPTS, IPPROTO_HOPOPTS, 0, 0, 0) == RWAY_MALFORMED_EXTENSION);
    EXPECT(cause_of_extension(IPPROTO_HOPOPTS, IPPROTO_AH, 0, 0, 0) == RWAY_MALFORMED_EXTENSION);
    EXPECT(cause_of_extension(IPPROTO_HOPOPTS, IPPROTO_ROUTING, 0, 0, 0) == RWAY_WELL_FORMED);
    EXPECT(cause_of_extension(IPPROTO_HOPOPTS, IPPROTO_ROUTING, 0, 0, 1) == RWAY_MALFORMED_SOURCE_ROUTE);
    EXPECT(cause_of_extension(IPPROTO_HOPOPTS, IPPROTO_ROUTING, 0, 2, 1) == RWAY_WELL_FORMED);
}

static void transport_headers_of_wrong_length_are_malformed(void)
{
    struct frame tcp_short = ethernet(0x0800);
    struct frame tcp_long = ethernet(0x0800);
    struct frame udp_short = ethernet(0x0800);
    struct frame udp_long = ethernet(0x0800);

    add_ip4(&tcp_short, IPPROTO_TCP, 0, 20);
    add_tcp(&tcp_short, 0)[12] = 0x40;
    EXPECT(cause_of(&tcp_short) == RWAY_MALFORMED_TRANSPORT);
    add_ip4(&tcp_long, IPPROTO_TCP, 0, 20);
    add_tcp(&tcp_long, 0)[12] = 0x60;
    EXPECT(cause_of(&tcp_long) == RWAY_MALFORMED_TRANSPORT);
    add_ip4(&udp_short, IPPROTO_UDP, 0, 8);
    add_udp(&udp_short, 0)[5] = 7;
    EXPECT(cause_of(&udp_short) == RWAY_MALFORMED_TRANSPORT);
    add_ip4(&udp_long, IPPROTO_UDP, 0, 8);
    add_udp(&udp_long, 0)[5] = 9;
    EXPECT(cause_of(&udp_long) == RWAY_MALFORMED_TRANSPORT);
}

int main(void)
{
    tcp_over_ip4_is_read();
    the_longest_ordinary_headers_are_read();
    udp_behind_ip6_extension_headers_is_read();
    icmp_and_sctp_are_read_in_their_families();
    frames_that_are_not_ip_pass_as_such();
    an_ip6_packet_without_anything_passes();
    fragments_are_told_apart();
    padding_is_no_transport_header();
    a_frame_shorter_than_its_headers_is_malformed();
    bytes_that_were_not_copied_are_too_long_not_absent();
    a_third_vlan_tag_is_malformed();
    arp_with_wrong_address_lengths_is_malformed();
    ip4_headers_that_contradict_themselves_are_malformed();
    ip4_options_are_walked();
    fragments_that_hide_a_header_are_malformed();
    an_ip6_first_fragment_without_its_header_chain_is_malformed();
    ip6_headers_that_contradict_themselves_are_malformed();
    extension_headers_are_bounded();
    transport_headers_of_wrong_length_are_malformed();
    return failures != 0;
}
