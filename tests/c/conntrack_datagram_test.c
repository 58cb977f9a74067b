/* variants: tsan */
/* Fragments follow their first one, and ICMP errors about packets with extension headers find their connection. */
#include <pthread.h>

#include "conntrack_bench.h"

enum { FIRST_LEN = 64, LATER_LEN = 24 /* bytes of data behind the IP header */ };

/* One fragment of a UDP datagram. */
struct piece {
    uint8_t version;
    uint32_t id;
    uint16_t begins; /* bytes; a multiple of 8 */
    uint16_t len;
    bool more;
    bool back;           /* from the server to the client */
    uint16_t port;       /* the client's */
    uint16_t vlan;       /* of a tag beside the frame */
    uint8_t protocol;    /* IPv4; 0: UDP */
    uint8_t client;      /* the last byte of its address */
    uint8_t options_len; /* IPv6: of a destination options header before the fragment header */
};

static const struct piece FIRST4 = {.version = 4, .id = 7, .len = FIRST_LEN, .more = true, .port = 4000, .client = 1};
static const struct piece FIRST6 = {.version = 6, .id = 7, .len = FIRST_LEN, .more = true, .port = 4000, .client = 1};

static struct piece later(struct piece piece)
{
    piece.begins = piece.begins + piece.len;
    piece.len = LATER_LEN;
    piece.more = false;
    return piece;
}

static struct piece answer(struct piece piece)
{
    piece.back = true;
    return piece;
}

static void write_udp(uint8_t *data, const struct piece *piece)
{
    if (piece->begins != 0)
        return;
    write16(data, piece->back ? 53 : piece->port);
    write16(data + 2, piece->back ? piece->port : 53);
    write16(data + 4, 1000);
}

static uint32_t write_ip4(uint8_t *ip, const struct piece *piece)
{
    uint32_t client = 0x0a000000u + piece->client, server = 0xc0000201;

    ip[0] = 0x45;
    write16(ip + 2, 20u + piece->len);
    write16(ip + 4, piece->id);
    write16(ip + 6, piece->begins / 8u | (piece->more ? 0x2000u : 0));
    ip[9] = piece->protocol ? piece->protocol : IPPROTO_UDP;
    write32(ip + 12, piece->back ? server : client);
    write32(ip + 16, piece->back ? client : server);
    write_udp(ip + 20, piece);
    return 20u + piece->len;
}

static uint32_t write_ip6(uint8_t *ip, const struct piece *piece)
{
    uint8_t *header = ip + 40 + piece->options_len;

    ip[0] = 0x60;
    write16(ip + 4, piece->options_len + 8u + piece->len);
    ip[6] = piece->options_len ? IPPROTO_DSTOPTS : IPPROTO_FRAGMENT;
    ip[8] = ip[24] = 0xfd;
    ip[23] = piece->back ? 99 : piece->client;
    ip[39] = piece->back ? piece->client : 99;
    if (piece->options_len) {
        ip[40] = IPPROTO_FRAGMENT;
        ip[41] = (uint8_t)(piece->options_len / 8 - 1);
    }
    header[0] = IPPROTO_UDP;
    write16(header + 2, piece->begins | (piece->more ? 1u : 0));
    write32(header + 4, piece->id);
    write_udp(header + 8, piece);
    return 48u + piece->options_len + piece->len;
}

static int judge_piece(struct bench *bench, struct piece piece, uint32_t in_port, uint32_t out_port)
{
    uint8_t bytes[512] = {0};
    uint32_t len = piece.version == 4 ? write_ip4(bytes + 14, &piece) : write_ip6(bytes + 14, &piece);

    write16(bytes + 12, piece.version == 4 ? RWAY_ETHER_IP4 : RWAY_ETHER_IP6);
    return judge_bytes(bench, bytes, 14 + len, piece.vlan, in_port, out_port);
}

static bool passes(struct bench *bench, struct piece piece)
{
    return judge_piece(bench, piece, piece.back ? OUTSIDE : INSIDE, piece.back ? INSIDE : OUTSIDE) == RWAY_PASSES;
}

/* Denies all but UDP from inside to port 53: rules that a later fragment cannot match. */
static struct bench bench_of_names(void)
{
    struct bench bench = bench_of(IPPROTO_UDP);
    struct rway_rule rule = {.name = "names",
                             .action = RWAY_ALLOW,
                             .match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_IN_PORT | RWAY_MATCH_DESTINATION_PORT,
                             .protocol = IPPROTO_UDP,
                             .in_port = INSIDE,
                             .destination_port_low = 53,
                             .destination_port_high = 53};

    replace(&bench, rway_filter_table_new(&rule, 1, RWAY_DENY, NULL));
    return bench;
}

static void later_fragments_follow_their_first_one_both_ways(struct piece first)
{
    struct bench bench = bench_of_names();
    struct piece last_byte = later(later(first));

    last_byte.len = 1;
    EXPECT(passes(&bench, first) && passes(&bench, later(first)) && passes(&bench, last_byte));
    EXPECT(passes(&bench, answer(first)) && passes(&bench, answer(later(first))));
    EXPECT(passes(&bench, answer(later(first)))); /* a duplicate */
    EXPECT(counts_of(&bench).fragments == 4);
    close_bench(&bench);
}

static void other_later_fragments_go_by_the_rules_alone(struct piece first)
{
    struct bench bench = bench_of_names();
    struct piece other = later(first);

    EXPECT(!passes(&bench, later(first))); /* before its first */
    EXPECT(passes(&bench, first));
    other.id++;
    EXPECT(!passes(&bench, other));
    other = later(first);
    other.vlan = 5;
    EXPECT(!passes(&bench, other));
    other = later(first);
    other.client++;
    EXPECT(!passes(&bench, other));
    EXPECT(!passes(&bench, answer(later(first)))); /* the other way it is another datagram */
    EXPECT(judge_piece(&bench, later(first), ASIDE, OUTSIDE) == RWAY_DROP_POLICY);
    EXPECT(judge_piece(&bench, later(first), INSIDE, ASIDE) == RWAY_DROP_POLICY);
    if (first.version == 4) {
        other = later(first);
        other.protocol = IPPROTO_TCP;
        EXPECT(!passes(&bench, other));
    }
    EXPECT(counts_of(&bench).fragments == 0);
    bench.now += 31;
    EXPECT(!passes(&bench, later(first)));
    close_bench(&bench);
}

static void a_fragment_does_not_write_over_what_was_judged(struct piece first)
{
    struct bench bench = bench_of_names();
    struct piece over = later(first);

    EXPECT(passes(&bench, first));
    for (over.begins = 8; over.begins < FIRST_LEN; over.begins += 8)
        EXPECT(!passes(&bench, over));
    EXPECT(passes(&bench, over));
    close_bench(&bench);
}

/* An identification comes again; a first fragment that is denied takes back what one before it was allowed. */
static void a_first_fragment_that_is_denied_is_followed_by_none(struct piece first)
{
    struct bench bench = bench_of_names();
    struct piece stranger = answer(first);

    stranger.port++;
    EXPECT(passes(&bench, first) && passes(&bench, answer(first)) && passes(&bench, answer(later(first))));
    EXPECT(!passes(&bench, stranger) && !passes(&bench, answer(later(first))));
    EXPECT(passes(&bench, answer(first)) && passes(&bench, answer(later(first))));
    close_bench(&bench);
}

/* The filter's rules change without any loss, while a datagram is under way too. */
static void rules_that_change_do_not_cut_a_datagram_in_two(void)
{
    struct bench bench = bench_of_names();

    EXPECT(passes(&bench, FIRST4));
    replace(&bench, table_that(RWAY_DENY, RWAY_ALLOW, IPPROTO_UDP, INSIDE));
    EXPECT(passes(&bench, later(FIRST4)));
    close_bench(&bench);
}

static void a_flood_of_datagrams_displaces_none_that_came_in_by_another_port(void)
{
    struct bench bench = bench_of_names();
    enum { HONEST = 200, FLOOD = 20000 };
    uint32_t followed = 0;

    for (uint32_t id = 0; id < HONEST; id++) {
        struct piece piece = FIRST6;

        piece.id = id;
        EXPECT(passes(&bench, piece) && passes(&bench, answer(piece)));
    }
    for (uint32_t id = HONEST; id < HONEST + FLOOD; id++) {
        struct piece piece = FIRST6;

        piece.id = id;
        EXPECT(passes(&bench, piece) && passes(&bench, later(piece)));
    }
    for (uint32_t id = 0; id < HONEST; id++) {
        struct piece piece = later(answer(FIRST6));

        piece.begins = FIRST_LEN;
        piece.id = id;
        followed += passes(&bench, piece);
    }
    EXPECT(followed >= HONEST * 99 / 100); /* buckets in which it had more than half of the places */
    close_bench(&bench);
}

/* ---- errors ---- */

/* ICMPv6 "packet too big" about that much of a packet, for who sent it. */
static int judge_error6(struct bench *bench, const uint8_t *packet, uint32_t len)
{
    uint8_t bytes[512] = {[12] = 0x86, [13] = 0xdd, [14] = 0x60, [20] = IPPROTO_ICMPV6, [22] = 0xfd, [37] = 77};

    write16(bytes + 14 + 4, 8 + len);
    memcpy(bytes + 14 + 24, packet + 8, 16);
    bytes[14 + 40] = 2;
    memcpy(bytes + 14 + 48, packet, len);
    return judge_bytes(bench, bytes, 14 + 48 + len, 0, OUTSIDE, INSIDE);
}

/* A UDP packet from the client behind these headers, each as long as it says; returns its length. */
static uint32_t write_behind(uint8_t *packet, const uint8_t *kinds, uint32_t count)
{
    uint32_t offset = 40;

    memset(packet, 0, 256);
    write_ip6(packet, &FIRST6);
    packet[6] = count ? kinds[0] : IPPROTO_UDP;
    memset(packet + 40, 0, 24);
    for (uint32_t i = 0; i < count; i++) {
        packet[offset] = i + 1 < count ? kinds[i + 1] : IPPROTO_UDP;
        packet[offset + 1] = kinds[i] == IPPROTO_FRAGMENT ? 0 : 1; /* 16 bytes, of AH 12 */
        packet[offset + 3] = kinds[i] == IPPROTO_FRAGMENT;         /* more follow */
        offset += kinds[i] == IPPROTO_FRAGMENT ? 8 : kinds[i] == IPPROTO_AH ? 12 : 16;
    }
    write_udp(packet + offset, &FIRST6);
    write16(packet + 4, offset + 8 - 40);
    return offset + 8;
}

static void an_error_about_a_packet_with_extension_headers_finds_its_connection(void)
{
    static const uint8_t CHAINS[][3] = {{IPPROTO_FRAGMENT},
                                        {IPPROTO_DSTOPTS},
                                        {IPPROTO_HOPOPTS, IPPROTO_DSTOPTS, IPPROTO_FRAGMENT},
                                        {IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_AH}};
    static const uint8_t LENGTHS[] = {1, 1, 3, 3};
    uint8_t packet[256];

    for (uint32_t i = 0; i < sizeof(LENGTHS); i++) {
        struct bench bench = bench_of_names();
        uint32_t len = write_behind(packet, CHAINS[i], LENGTHS[i]);

        EXPECT(judge_error6(&bench, packet, len) == RWAY_DROP_POLICY);
        EXPECT(passes(&bench, FIRST6));
        EXPECT(judge_error6(&bench, packet, len) == RWAY_PASSES);
        for (uint32_t cut = 40; cut < len; cut++) /* nothing is read behind what is there */
            EXPECT(judge_error6(&bench, packet, cut) == RWAY_DROP_POLICY);
        packet[len - 5]++; /* another port */
        EXPECT(judge_error6(&bench, packet, len) == RWAY_DROP_POLICY);
        close_bench(&bench);
    }
}

static void an_error_about_a_later_fragment_is_about_no_connection(void)
{
    static const uint8_t CHAIN[] = {IPPROTO_FRAGMENT};
    struct bench bench = bench_of_names();
    uint8_t packet[256];
    uint32_t len = write_behind(packet, CHAIN, 1);

    EXPECT(passes(&bench, FIRST6));
    packet[43] = 8; /* what looks like ports is data */
    EXPECT(judge_error6(&bench, packet, len) == RWAY_DROP_POLICY);
    close_bench(&bench);
}

/* ---- several loops at once ---- */

enum { LOOPS = 3, ROUNDS = 3000, IDS = 16 /* so few that none displaces another, however long a loop is away */ };

struct loop {
    pthread_t thread;
    struct bench bench;
    uint32_t number;
    uint32_t passed;
};

/* Each loop has datagrams of its own; a first and a later fragment of one may come by two of them. */
static void *run_loop(void *argument)
{
    struct loop *loop = argument;

    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct piece piece = FIRST4;

        piece.client = (uint8_t)(1 + loop->number);
        piece.id = (uint16_t)(round % IDS);
        loop->passed += passes(&loop->bench, piece) && passes(&loop->bench, later(piece));
    }
    rway_filter_leave(loop->bench.filter, loop->bench.reader);
    return NULL;
}

static void loops_share_datagrams(void)
{
    struct bench bench = bench_of_names();
    struct loop loops[LOOPS] = {{0}};
    struct piece piece = FIRST4;

    piece.id = (ROUNDS - 1) % IDS;
    rway_filter_leave(bench.filter, bench.reader);
    for (uint32_t index = 0; index < LOOPS; index++) {
        loops[index].number = index;
        loops[index].bench = (struct bench){.filter = bench.filter, .now = bench.now};
        loops[index].bench.reader = (uint32_t)rway_filter_reader_add(bench.filter);
        loops[index].bench.conntrack = rway_filter_conntrack(bench.filter, loops[index].bench.reader);
        EXPECT(pthread_create(&loops[index].thread, NULL, run_loop, &loops[index]) == 0);
    }
    for (uint32_t index = 0; index < LOOPS; index++) {
        pthread_join(loops[index].thread, NULL);
        EXPECT(loops[index].passed == ROUNDS);
        piece.client = (uint8_t)(1 + index);
        EXPECT(passes(&bench, later(piece)));
    }
    close_bench(&bench);
}

int main(void)
{
    struct piece behind_options = FIRST6;

    behind_options.options_len = 16;
    for (uint32_t kind = 0; kind < 3; kind++) {
        struct piece first = kind == 0 ? FIRST4 : kind == 1 ? FIRST6 : behind_options;

        later_fragments_follow_their_first_one_both_ways(first);
        other_later_fragments_go_by_the_rules_alone(first);
        a_fragment_does_not_write_over_what_was_judged(first);
        a_first_fragment_that_is_denied_is_followed_by_none(first);
    }
    rules_that_change_do_not_cut_a_datagram_in_two();
    a_flood_of_datagrams_displaces_none_that_came_in_by_another_port();
    an_error_about_a_packet_with_extension_headers_finds_its_connection();
    an_error_about_a_later_fragment_is_about_no_connection();
    loops_share_datagrams();
    return failures != 0;
}
