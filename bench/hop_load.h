/* What the ends of a hop send and expect: UDP frames of so many flows, the pattern of touch.h behind the headers. */
#ifndef BENCH_HOP_LOAD_H
#define BENCH_HOP_LOAD_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "bench.h"
#include "touch.h"

/* Unless the board says otherwise, so few frames are under way that no ring on the way can be full. */
enum { HOP_BURST = 64, HOP_UNDER_WAY = 512, HOP_PATTERN_AT = 48, HOP_UDP_PORT = 9000 };

/* Ethernet, IPv4 and UDP (RFC 768: checksum 0 is none), then six bytes up to the pattern. */
struct hop_template {
    uint8_t bytes[HOP_PATTERN_AT];
};

struct hop_load {
    struct hop_template template;
    uint32_t len;
    uint32_t touched; /* bytes of each frame that are written and compared */
    uint64_t flows;
    uint64_t under_way; /* at most */
    uint64_t sent;
    uint64_t expected; /* number of the next frame to come */
};

static inline void hop_put16(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
}

/* RFC 1071, over an IPv4 header without options. */
static inline uint16_t hop_header_checksum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static inline struct hop_template hop_template_of(uint32_t len)
{
    struct hop_template template = {{0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00}};
    uint8_t *ip = template.bytes + 14;
    ip[0] = 0x45;
    hop_put16(ip + 2, len - 14);
    ip[8] = 64;
    ip[9] = 17;
    ip[12] = ip[16] = 10;
    ip[15] = 1;
    ip[19] = 2;
    hop_put16(ip + 10, hop_header_checksum(ip));
    hop_put16(ip + 24, len - 34);
    return template;
}

/* Do what the board asks for. False: something else is to begin, when nothing of what was before is under way. */
BENCH_INLINE bool hop_load_follow(struct hop_load *load, const struct bench_board *board)
{
    uint32_t len = (uint32_t)__atomic_load_n(&board->len, __ATOMIC_RELAXED);
    uint64_t flows = __atomic_load_n(&board->flows, __ATOMIC_RELAXED);
    uint64_t asked = __atomic_load_n(&board->touched, __ATOMIC_RELAXED);
    uint64_t under_way = __atomic_load_n(&board->under_way, __ATOMIC_RELAXED);
    uint32_t touched = asked == 0 || asked > len ? len : (uint32_t)asked;
    load->under_way = under_way == 0 ? HOP_UNDER_WAY : under_way;
    if (len == load->len && flows == load->flows && touched == load->touched)
        return true;
    if (load->sent != load->expected)
        return false;
    load->len = len;
    load->touched = touched;
    load->flows = flows;
    load->template = hop_template_of(len);
    return true;
}

/* Frames that may be sent now, of a burst. */
BENCH_INLINE uint32_t hop_load_room(const struct hop_load *load)
{
    uint64_t free = load->under_way - (load->sent - load->expected);
    return free < HOP_BURST ? (uint32_t)free : HOP_BURST;
}

/*
 * Source port and destination port, as they stand in the frame. Flows are scattered, so that neighbours in time are
 * none in a table. A power of two of them.
 */
BENCH_INLINE uint32_t hop_load_ports(const struct hop_load *load, uint64_t number)
{
    uint32_t flow = (uint32_t)((number * 0x9e3779b97f4a7c15u >> 32) & (load->flows - 1));
    return (uint32_t)htons((uint16_t)flow) | (uint32_t)htons((uint16_t)(HOP_UDP_PORT + (flow >> 16))) << 16;
}

/* Write the frame that leaves as number `at` of a burst. */
BENCH_INLINE void hop_load_build(const struct hop_load *load, uint8_t *to, uint32_t at)
{
    uint32_t ports = hop_load_ports(load, load->sent + at);
    memcpy(to, load->template.bytes, HOP_PATTERN_AT);
    memcpy(to + 34, &ports, 4);
    touch_write(to + HOP_PATTERN_AT, load->touched - HOP_PATTERN_AT, load->sent + at);
}

/* 0 when the frame that comes as number `at` of a burst is the expected one. */
BENCH_INLINE uint64_t hop_load_compare(const struct hop_load *load, const uint8_t *from, uint32_t at)
{
    struct hop_template expected = load->template;
    uint32_t ports = hop_load_ports(load, load->expected + at);
    uint64_t wrong = 0;
    memcpy(expected.bytes + 34, &ports, 4);
    for (int i = 0; i < HOP_PATTERN_AT; i += 8) {
        uint64_t found, meant;
        memcpy(&found, from + i, 8);
        memcpy(&meant, expected.bytes + i, 8);
        wrong |= found ^ meant;
    }
    return wrong | touch_check(from + HOP_PATTERN_AT, load->touched - HOP_PATTERN_AT, load->expected + at);
}

#endif
