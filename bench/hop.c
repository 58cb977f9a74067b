/*
 * Generator and sink of one hop, on one core: UDP frames into one link, and what comes back out of another, every byte
 * written and compared. So many frames are under way at most that no ring on the way can be full: a frame that does
 * not come back is lost, and counted.
 */
#include "bench.h"

#include <arpa/inet.h>
#include <stdbool.h>

#include "touch.h"

enum { BURST = 64, UNDER_WAY = 512, HEADERS = 42, PATTERN_AT = 48, UDP_PORT = 9000 };

/* Ethernet, IPv4 and UDP (RFC 768: checksum 0 is none), then six bytes up to the pattern. */
struct template {
    uint8_t bytes[PATTERN_AT];
};

static void put16(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
}

/* RFC 1071, over an IPv4 header without options. */
static uint16_t header_checksum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static struct template make_template(uint32_t len)
{
    struct template template = {{0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00}};
    uint8_t *ip = template.bytes + 14;
    ip[0] = 0x45;
    put16(ip + 2, len - 14);
    ip[8] = 64;
    ip[9] = 17;
    ip[12] = ip[16] = 10;
    ip[15] = 1;
    ip[19] = 2;
    put16(ip + 10, header_checksum(ip));
    put16(ip + 24, len - 34);
    return template;
}

/* Which flow a frame belongs to: scattered, so that neighbours in time are none in a table. A power of two of them. */
BENCH_INLINE uint32_t flow_of(uint64_t number, uint64_t flows)
{
    return (uint32_t)((number * 0x9e3779b97f4a7c15u >> 32) & (flows - 1));
}

/* Source port and destination port of a flow, as they stand in the frame. */
BENCH_INLINE uint32_t ports_of(uint32_t flow)
{
    return (uint32_t)htons((uint16_t)flow) | (uint32_t)htons((uint16_t)(UDP_PORT + (flow >> 16))) << 16;
}

BENCH_INLINE void build(uint8_t *to, const struct template *template, uint32_t len, uint64_t number, uint32_t ports)
{
    memcpy(to, template->bytes, PATTERN_AT);
    memcpy(to + 34, &ports, 4);
    touch_write(to + PATTERN_AT, len - PATTERN_AT, number);
}

BENCH_INLINE uint64_t compare(const uint8_t *from, const struct template *template, uint32_t len, uint64_t number,
                              uint32_t ports)
{
    struct template expected = *template;
    uint64_t wrong = 0;
    memcpy(expected.bytes + 34, &ports, 4);
    for (int at = 0; at < PATTERN_AT; at += 8) {
        uint64_t found, meant;
        memcpy(&found, from + at, 8);
        memcpy(&meant, expected.bytes + at, 8);
        wrong |= found ^ meant;
    }
    return wrong | touch_check(from + PATTERN_AT, len - PATTERN_AT, number);
}

struct hop {
    struct rway_producer *out;
    struct rway_consumer *in;
    struct bench_board *board;
    struct template template;
    uint32_t len;
    uint32_t touched;
    uint64_t flows;
    uint64_t sent;
    uint64_t expected; /* number of the next frame to come */
    struct rway_frame leaving[BURST];
    struct rway_frame coming[BURST];
};

BENCH_INLINE void send_burst(struct hop *hop)
{
    uint64_t free = UNDER_WAY - (hop->sent - hop->expected);
    uint32_t claimed = rway_ring_claim(hop->out, hop->leaving, free < BURST ? (uint32_t)free : BURST);
    for (uint32_t i = 0; i < claimed; i++)
        build(hop->leaving[i].data, &hop->template, hop->touched, hop->sent + i,
              ports_of(flow_of(hop->sent + i, hop->flows)));
    rway_ring_publish_more(hop->out, hop->leaving, claimed);
    hop->sent += claimed;
}

BENCH_INLINE void take_burst(struct hop *hop)
{
    uint32_t taken = rway_ring_peek(hop->in, hop->coming, BURST);
    uint64_t bad = 0;
    for (uint32_t i = 0; i < taken; i++)
        bad += hop->coming[i].len != hop->len || compare(hop->coming[i].data, &hop->template, hop->touched,
                                                         hop->expected + i,
                                                         ports_of(flow_of(hop->expected + i, hop->flows))) != 0;
    rway_ring_release_more(hop->in);
    hop->expected += taken;
    board_add(hop->board, taken, (uint64_t)taken * hop->len, bad);
}

BENCH_CLONES void bench_hop(void *out, void *in, struct bench_board *board)
{
    struct hop hop = {.out = out, .in = in, .board = board};
    while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED)) {
        uint32_t len = (uint32_t)__atomic_load_n(&board->len, __ATOMIC_RELAXED);
        uint64_t flows = __atomic_load_n(&board->flows, __ATOMIC_RELAXED);
        uint64_t asked = __atomic_load_n(&board->touched, __ATOMIC_RELAXED);
        uint32_t touched = asked == 0 || asked > len ? len : (uint32_t)asked;
        bool same = len == hop.len && flows == hop.flows && touched == hop.touched;
        /* Something else begins when nothing of what was before is under way. */
        if (!same && hop.sent == hop.expected) {
            same = true;
            hop.len = len;
            hop.touched = touched;
            hop.flows = flows;
            hop.template = make_template(len);
            for (uint32_t i = 0; i < BURST; i++)
                hop.leaving[i] = (struct rway_frame){.kind = RWAY_DESC_FRAME, .len = len};
        }
        if (same)
            send_burst(&hop);
        take_burst(&hop);
    }
}
