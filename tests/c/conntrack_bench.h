/* A filter that remembers connections, with one reader, and IPv4 frames for it. */
#ifndef RWAY_TESTS_FLOW_BENCH_H
#define RWAY_TESTS_FLOW_BENCH_H

#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "conntrack.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16, INSIDE = 0, OUTSIDE = 1, ASIDE = 2, CONNECTIONS = RWAY_CONNECTIONS_MIN };

static const struct rway_conntrack_timeouts TIMEOUTS = {60, 7440, 240, 120, 300, 60};

struct bench {
    struct rway_filter *filter;
    struct rway_conntrack_reader *conntrack;
    uint32_t reader;
    uint32_t now;
};

static inline struct rway_filter_table *table_that(uint32_t default_action, uint32_t action, uint8_t protocol,
                                                   uint32_t in_port)
{
    struct rway_rule rule = {.name = "rule",
                             .action = action,
                             .match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_IN_PORT,
                             .protocol = protocol,
                             .in_port = in_port};

    return rway_filter_table_new(&rule, 1, default_action, NULL);
}

/* Denies all but what one protocol opens from inside. */
static inline struct bench bench_of(uint8_t protocol)
{
    struct bench bench = {.filter = rway_filter_new(), .now = 1000};

    EXPECT(rway_filter_track(bench.filter, CONNECTIONS, &TIMEOUTS, NULL) == 0);
    EXPECT(rway_filter_replace(bench.filter, table_that(RWAY_DENY, RWAY_ALLOW, protocol, INSIDE)) == 0);
    bench.reader = (uint32_t)rway_filter_reader_add(bench.filter);
    bench.conntrack = rway_filter_conntrack(bench.filter, bench.reader);
    return bench;
}

static inline void replace(struct bench *bench, struct rway_filter_table *table)
{
    rway_filter_leave(bench->filter, bench->reader);
    EXPECT(rway_filter_replace(bench->filter, table) == 0);
}

struct packet {
    uint32_t source;
    uint32_t destination;
    uint16_t source_port; /* ICMP: type and code */
    uint16_t destination_port;
    uint8_t protocol;
    uint8_t flags;
    uint32_t sequence; /* ICMP: identifier in the upper half */
    uint32_t acknowledgement;
    uint16_t vlan; /* of a tag beside the frame */
};

static inline void write16(uint8_t *to, uint32_t word)
{
    to[0] = (uint8_t)(word >> 8);
    to[1] = (uint8_t)word;
}

static inline void write32(uint8_t *to, uint32_t word)
{
    write16(to, word >> 16);
    write16(to + 2, word);
}

/* The IP packet; returns its length. */
static inline uint32_t write_packet(uint8_t *ip, const struct packet *packet)
{
    uint8_t *l4 = ip + 20;

    memset(ip, 0, 40);
    ip[0] = 0x45;
    write16(ip + 2, 40);
    ip[9] = packet->protocol;
    write32(ip + 12, packet->source);
    write32(ip + 16, packet->destination);
    write16(l4, packet->source_port);
    write16(l4 + 2, packet->destination_port);
    write32(l4 + 4, packet->protocol == IPPROTO_UDP ? 20u << 16 : packet->sequence);
    write32(l4 + 8, packet->acknowledgement);
    l4[12] = 0x50;
    l4[13] = packet->flags;
    return 40;
}

/* Judge the bytes of a frame; returns RWAY_PASSES or enum rway_drop. */
static inline int judge_bytes(struct bench *bench, const uint8_t *bytes, uint32_t len, uint16_t vlan, uint32_t in_port,
                              uint32_t out_port)
{
    struct rway_rule_counts *counts;
    struct rway_headers headers;
    struct rway_judged judged = {.bytes = bytes, .headers = &headers, .vlan = vlan};
    const struct rway_filter_table *table = rway_filter_enter(bench->filter, bench->reader, &counts);

    EXPECT(rway_parse(bytes, len, len, &headers) == RWAY_WELL_FORMED);
    judged.copied = len < RWAY_HEADERS_MAX ? len : RWAY_HEADERS_MAX;
    judged.frame_len = len;
    rway_conntrack_turn(bench->conntrack, table, counts, bench->now);
    rway_conntrack_judge(bench->conntrack, in_port, out_port, &judged, 1);
    return judged.stopped;
}

/* Judge it, and what it is about behind it if there is something; returns RWAY_PASSES or enum rway_drop. */
static inline int judge_with(struct bench *bench, const struct packet *packet, const struct packet *about,
                             uint32_t in_port, uint32_t out_port)
{
    uint8_t bytes[128] = {[12] = 8};
    uint32_t len = 14 + write_packet(bytes + 14, packet);

    if (about) {
        len = 14 + 28 + write_packet(bytes + 14 + 28, about);
        write16(bytes + 16, len - 14);
    }
    return judge_bytes(bench, bytes, len, packet->vlan, in_port, out_port);
}

static inline int out(struct bench *bench, const struct packet *packet)
{
    return judge_with(bench, packet, NULL, INSIDE, OUTSIDE);
}

static inline int back(struct bench *bench, const struct packet *packet)
{
    return judge_with(bench, packet, NULL, OUTSIDE, INSIDE);
}

static inline struct packet reversed(struct packet packet)
{
    struct packet other = packet;

    other.source = packet.destination;
    other.destination = packet.source;
    other.source_port = packet.destination_port;
    other.destination_port = packet.source_port;
    return other;
}

static inline struct packet tcp(uint32_t client, uint8_t flags, uint32_t sequence, uint32_t acknowledgement)
{
    return (struct packet){.source = 0x0a000000 + client,
                           .destination = 0xc0000201,
                           .source_port = 40000,
                           .destination_port = 80,
                           .protocol = IPPROTO_TCP,
                           .flags = flags,
                           .sequence = sequence,
                           .acknowledgement = acknowledgement};
}

static inline struct packet tcp_back(uint32_t client, uint8_t flags, uint32_t sequence, uint32_t acknowledgement)
{
    return reversed(tcp(client, flags, sequence, acknowledgement));
}

static inline struct packet udp(uint32_t client)
{
    struct packet packet = tcp(client, 0, 0, 0);

    packet.protocol = IPPROTO_UDP;
    return packet;
}

static inline int sent(struct bench *bench, struct packet packet)
{
    return out(bench, &packet);
}

static inline int came(struct bench *bench, struct packet packet)
{
    return back(bench, &packet);
}

/* A whole handshake; true when all of it passed. */
static inline bool connect_tcp(struct bench *bench, uint32_t client)
{
    return sent(bench, tcp(client, SYN, 100, 0)) == RWAY_PASSES &&
           came(bench, tcp_back(client, SYN | ACK, 500, 101)) == RWAY_PASSES &&
           sent(bench, tcp(client, ACK, 101, 501)) == RWAY_PASSES;
}

static inline bool is_open(struct bench *bench, uint32_t client)
{
    return came(bench, tcp_back(client, ACK, 501, 101)) == RWAY_PASSES;
}

static inline struct rway_conntrack_counts counts_of(const struct bench *bench)
{
    struct rway_conntrack_counts counts;

    rway_filter_conntrack_counts(bench->filter, &counts);
    return counts;
}

static inline void close_bench(struct bench *bench)
{
    rway_filter_reader_remove(bench->filter, bench->reader);
    rway_filter_free(bench->filter);
}

#endif
