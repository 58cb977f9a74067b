/*
 * A packet function of one's own: it marks what goes to a TCP or UDP port with a DSCP (RFC 2474), and counts it.
 *
 *      cc -shared -fPIC -O2 -I"$(ringway headers)" -o mark.so mark.c
 *
 *      [[vm.firewall.stack.function]]
 *      name = "mark"
 *      options = { port = 5201, dscp = 46 }
 */
#include <stdlib.h>

#include "stack/function.h"

enum { PORT, DSCP };                /* as OPTIONS has them */
enum { MARKED, ALREADY, NOT_MINE }; /* as COUNTERS has them */

static const struct rway_option OPTIONS[] = {
    [PORT] = {.name = "port", .type = RWAY_OPTION_NUMBER, .least = 1, .most = 65535, .usual = 443},
    [DSCP] = {.name = "dscp", .type = RWAY_OPTION_NUMBER, .least = 0, .most = 63, .usual = 46},
};
static const char *const COUNTERS[] = {[MARKED] = "marked", [ALREADY] = "already", [NOT_MINE] = "not_mine"};

/* Of one loop: each has its own, so nothing here needs a lock. */
struct mark {
    uint16_t port;
    uint8_t dscp;
    uint64_t *counters;
};

static void *mark_start(const struct rway_function_start *start)
{
    struct mark *mark = calloc(1, sizeof *mark);
    if (mark == NULL)
        return NULL;
    mark->port = (uint16_t)start->options[PORT].number;
    mark->dscp = (uint8_t)start->options[DSCP].number;
    mark->counters = start->counters;
    return mark;
}

/* The header's 16-bit word at offset at becomes another; so does IPv4's checksum over it (RFC 1624, equation 3). */
static void change_word(uint8_t *ip, int is_ipv4, uint8_t high, uint8_t low)
{
    uint32_t before = (uint32_t)(ip[0] << 8 | ip[1]), after = (uint32_t)(high << 8 | low);
    ip[0] = high;
    ip[1] = low;
    if (is_ipv4) {
        uint32_t sum = (uint32_t)(~(ip[10] << 8 | ip[11]) & 0xffff) + (~before & 0xffff) + after;
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        ip[10] = (uint8_t)(~sum >> 8);
        ip[11] = (uint8_t)~sum;
    }
}

/* The private bytes are the ones that leave: changing them is all there is to do. */
static int mark_packet(const struct mark *mark, struct rway_packet *packet)
{
    const struct rway_headers *headers = &packet->headers;
    uint8_t *ip = packet->bytes + headers->l3_offset;
    if (!(headers->flags & RWAY_HEADERS_PORTS) || headers->destination_port != mark->port)
        return NOT_MINE;
    if (headers->ip_version == 4) { /* version, length | DSCP, ECN */
        if (ip[1] >> 2 == mark->dscp)
            return ALREADY;
        change_word(ip, 1, ip[0], (uint8_t)(mark->dscp << 2 | (ip[1] & 3)));
    } else { /* version (4 bits), traffic class: DSCP (6), ECN (2), flow label */
        if (((ip[0] & 0x0f) << 2 | ip[1] >> 6) == mark->dscp)
            return ALREADY;
        change_word(ip, 0, (uint8_t)(0x60 | mark->dscp >> 2), (uint8_t)(mark->dscp << 6 | (ip[1] & 0x3f)));
    }
    return MARKED;
}

static void mark_burst(void *state, struct rway_packet *const *packets, uint32_t count)
{
    struct mark *mark = state;
    uint64_t counted[] = {[MARKED] = 0, [ALREADY] = 0, [NOT_MINE] = 0};
    for (uint32_t i = 0; i < count; i++)
        counted[mark_packet(mark, packets[i])]++;
    for (int i = MARKED; i <= NOT_MINE; i++)
        rway_counter_add(&mark->counters[i], counted[i]);
}

const struct rway_function rway_function_entry = {
    .version = RWAY_FUNCTION_VERSION,
    .options = OPTIONS,
    .option_count = 2,
    .counters = COUNTERS,
    .counter_count = 3,
    .start = mark_start,
    .stop = free,
    .burst = mark_burst,
};
