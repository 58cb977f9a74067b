/* Connections and the rules: what is taken up under way, and what rules that change leave of a connection. */
#include "conntrack_bench.h"

enum { TUNNEL_PORT = 51820 };

static struct rway_rule rule_of(uint32_t action, uint32_t match, uint8_t protocol, uint32_t in_port)
{
    return (struct rway_rule){.action = action, .match = match, .protocol = protocol, .in_port = in_port};
}

static struct rway_rule from(uint32_t action, uint32_t in_port)
{
    return rule_of(action, RWAY_MATCH_IN_PORT, 0, in_port);
}

static struct rway_rule all(uint32_t action)
{
    return rule_of(action, 0, 0, 0);
}

static struct rway_filter_table *table_of(uint32_t default_action, struct rway_rule one, struct rway_rule two)
{
    struct rway_rule rules[] = {one, two};

    strcpy(rules[0].name, "one");
    strcpy(rules[1].name, "two");
    return rway_filter_table_new(rules, 2, default_action, NULL);
}

/* ---- TCP under way ---- */

/* A new agent, and these rules: does a connection go on that inside opened before? */
static bool goes_on(struct rway_filter_table *table)
{
    struct bench bench = bench_of(IPPROTO_TCP);
    bool on;

    replace(&bench, table);
    on = sent(&bench, tcp(1, ACK, 101, 501)) == RWAY_PASSES && is_open(&bench, 1);
    close_bench(&bench);
    return on;
}

static void a_closing_rule_that_denies_everything_is_no_more_than_the_default(void)
{
    EXPECT(goes_on(table_of(RWAY_DENY, from(RWAY_ALLOW, INSIDE), all(RWAY_DENY))));
    EXPECT(goes_on(table_of(RWAY_ALLOW, from(RWAY_ALLOW, INSIDE), all(RWAY_DENY))));
}

static void neither_is_one_that_denies_the_protocol_both_addresses_or_the_far_ends_openings(void)
{
    struct rway_rule tcp_rule = rule_of(RWAY_DENY, RWAY_MATCH_PROTOCOL, IPPROTO_TCP, 0);
    struct rway_rule ether = rule_of(RWAY_DENY, RWAY_MATCH_ETHER, 0, 0);
    struct rway_rule everywhere = rule_of(RWAY_DENY, RWAY_MATCH_SOURCE, 0, 0);

    ether.ether = RWAY_ETHER_IP4;
    everywhere.ip_version = 4; /* 0.0.0.0/0 */
    EXPECT(goes_on(table_of(RWAY_ALLOW, from(RWAY_ALLOW, INSIDE), tcp_rule)));
    EXPECT(goes_on(table_of(RWAY_ALLOW, from(RWAY_ALLOW, INSIDE), ether)));
    EXPECT(goes_on(table_of(RWAY_ALLOW, from(RWAY_ALLOW, INSIDE), everywhere)));
    EXPECT(goes_on(table_of(RWAY_ALLOW, from(RWAY_ALLOW, INSIDE), from(RWAY_DENY, OUTSIDE))));
}

static void a_rule_for_the_other_direction_forbids_it_where_nothing_speaks_for_this_one(void)
{
    struct rway_rule answers =
        rule_of(RWAY_ALLOW, RWAY_MATCH_PROTOCOL | RWAY_MATCH_IN_PORT | RWAY_MATCH_TCP_FLAGS, IPPROTO_TCP, INSIDE);
    struct rway_rule to_client = rule_of(RWAY_DENY, RWAY_MATCH_DESTINATION, 0, 0);

    answers.tcp_mask = answers.tcp_value = ACK; /* lets nobody open */
    to_client.ip_version = 4;
    to_client.destination[0] = 10;
    to_client.destination_bits = 8;
    EXPECT(!goes_on(table_of(RWAY_ALLOW, from(RWAY_DENY, OUTSIDE), all(RWAY_ALLOW))));
    EXPECT(!goes_on(table_of(RWAY_ALLOW, from(RWAY_DENY, OUTSIDE), from(RWAY_DENY, ASIDE))));
    EXPECT(!goes_on(table_of(RWAY_ALLOW, answers, from(RWAY_DENY, OUTSIDE))));
    EXPECT(!goes_on(table_of(RWAY_ALLOW, to_client, all(RWAY_ALLOW))));
}

/* ---- what rules that change leave ---- */

static struct packet of(uint8_t protocol)
{
    struct packet packet = udp(1);

    packet.protocol = protocol;
    packet.source_port = packet.destination_port = TUNNEL_PORT;
    return packet;
}

/* Opened by inside and answered; then these rules come. */
static struct bench bench_with_denied(struct packet query, struct rway_filter_table *table)
{
    struct bench bench = bench_of(query.protocol);

    EXPECT(sent(&bench, query) == RWAY_PASSES && came(&bench, reversed(query)) == RWAY_PASSES);
    replace(&bench, table);
    EXPECT(sent(&bench, query) == RWAY_DROP_POLICY);
    return bench;
}

static void the_far_end_begins_anew_where_a_rule_lets_it(void)
{
    static const uint8_t PROTOCOLS[] = {IPPROTO_UDP, IPPROTO_SCTP};

    for (uint32_t i = 0; i < 2; i++) {
        struct packet query = of(PROTOCOLS[i]);
        struct bench bench = bench_with_denied(query, table_of(RWAY_DENY, from(RWAY_ALLOW, OUTSIDE), all(RWAY_DENY)));

        EXPECT(came(&bench, reversed(query)) == RWAY_PASSES);
        EXPECT(sent(&bench, query) == RWAY_PASSES); /* its answer */
        close_bench(&bench);
    }
}

static void an_echo_reply_that_a_rule_lets_pass_is_not_held_up_by_a_request_that_is_denied(void)
{
    struct packet request = {
        .source = 1, .destination = 2, .source_port = 8 << 8, .protocol = IPPROTO_ICMP, .sequence = 77u << 16};
    struct packet reply = {.source = 2, .destination = 1, .protocol = IPPROTO_ICMP, .sequence = 77u << 16};
    struct bench bench = bench_of(IPPROTO_ICMP);

    EXPECT(sent(&bench, request) == RWAY_PASSES && came(&bench, reply) == RWAY_PASSES);
    replace(&bench, table_of(RWAY_DENY, from(RWAY_ALLOW, OUTSIDE), all(RWAY_DENY)));
    EXPECT(sent(&bench, request) == RWAY_DROP_POLICY);
    EXPECT(came(&bench, reply) == RWAY_PASSES && sent(&bench, request) == RWAY_DROP_POLICY);
    close_bench(&bench);
}

/* Nothing has let the far end begin: not the default, and not a rule that would let everybody. */
static void what_allows_everybody_does_not_make_a_denied_connection_known_the_other_way_round(void)
{
    struct packet query = of(IPPROTO_UDP);

    for (int by_rule = 0; by_rule < 2; by_rule++) {
        struct bench bench =
            bench_with_denied(query, by_rule ? table_of(RWAY_DENY, from(RWAY_DENY, INSIDE), all(RWAY_ALLOW))
                                             : table_of(RWAY_ALLOW, from(RWAY_DENY, INSIDE), from(RWAY_DENY, ASIDE)));

        for (int step = 0; step < 10; step++) { /* as long as the far end goes on, which rules alone would let */
            EXPECT(came(&bench, reversed(query)) == RWAY_DROP_POLICY);
            EXPECT(sent(&bench, query) == RWAY_DROP_POLICY);
            bench.now += TIMEOUTS.udp_answered;
        }
        close_bench(&bench);
    }
}

static void a_verdict_is_not_renewed_by_frames_that_the_rules_deny_themselves(void)
{
    struct packet query = of(IPPROTO_UDP);
    struct bench bench = bench_with_denied(query, table_of(RWAY_ALLOW, from(RWAY_DENY, INSIDE), all(RWAY_ALLOW)));

    for (uint32_t second = 0; second <= TIMEOUTS.udp_answered; second++) {
        bench.now++;
        EXPECT(sent(&bench, query) == RWAY_DROP_POLICY);
    }
    EXPECT(came(&bench, reversed(query)) == RWAY_PASSES); /* anybody's question by now */
    close_bench(&bench);
}

/* RFC 9293: what goes on without a SYN is the connection that was denied. */
static void tcp_that_was_denied_stays_so_until_a_syn(void)
{
    struct bench bench = bench_of(IPPROTO_TCP);

    EXPECT(connect_tcp(&bench, 1));
    replace(&bench, table_of(RWAY_DENY, from(RWAY_ALLOW, OUTSIDE), all(RWAY_DENY)));
    for (int step = 0; step < 5; step++) {
        EXPECT(came(&bench, tcp_back(1, ACK, 501, 101)) == RWAY_DROP_POLICY);
        bench.now += TIMEOUTS.tcp_closing;
    }
    EXPECT(came(&bench, tcp_back(1, SYN, 900, 0)) == RWAY_PASSES);
    EXPECT(sent(&bench, tcp(1, SYN | ACK, 300, 901)) == RWAY_PASSES);
    close_bench(&bench);
}

int main(void)
{
    a_closing_rule_that_denies_everything_is_no_more_than_the_default();
    neither_is_one_that_denies_the_protocol_both_addresses_or_the_far_ends_openings();
    a_rule_for_the_other_direction_forbids_it_where_nothing_speaks_for_this_one();
    the_far_end_begins_anew_where_a_rule_lets_it();
    an_echo_reply_that_a_rule_lets_pass_is_not_held_up_by_a_request_that_is_denied();
    what_allows_everybody_does_not_make_a_denied_connection_known_the_other_way_round();
    a_verdict_is_not_renewed_by_frames_that_the_rules_deny_themselves();
    tcp_that_was_denied_stays_so_until_a_syn();
    return failures != 0;
}
