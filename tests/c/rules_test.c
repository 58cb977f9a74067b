/* Filter rules: which are refused, what each field matches, and who decides. */

#include <stdio.h>
#include <string.h>

#include "expect.h"
#include "stack.h"

static struct rway_rule rule_named(const char *name, uint32_t action)
{
    struct rway_rule rule = {.action = action};

    snprintf(rule.name, sizeof(rule.name), "%s", name);
    return rule;
}

static struct rway_rule tcp_port_rule(const char *name, uint32_t action, uint16_t low, uint16_t high)
{
    struct rway_rule rule = rule_named(name, action);

    rule.match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_DESTINATION_PORT;
    rule.protocol = IPPROTO_TCP;
    rule.destination_port_low = low;
    rule.destination_port_high = high;
    return rule;
}

static struct rway_headers tcp_packet(uint16_t port)
{
    return (struct rway_headers){
        .ether = 0x0800,
        .l3_offset = 14,
        .l4_offset = 34,
        .l4_len = 20,
        .payload_offset = 54,
        .source_port = 1234,
        .destination_port = port,
        .ip_version = 4,
        .protocol = IPPROTO_TCP,
        .tcp_flags = 2,
        .flags = RWAY_HEADERS_PORTS,
        .source = {10, 1, 2, 3},
        .destination = {10, 4, 5, 6},
    };
}

/* Does a rule of its own match? */
static bool matches(const struct rway_rule *rule, const struct rway_headers *headers, uint32_t in_port)
{
    struct rway_filter_table *table = rway_filter_table_new(rule, 1, RWAY_DENY, NULL);
    struct rway_rule_counts counts[2] = {{0, 0}, {0, 0}};

    EXPECT(table != NULL);
    if (!table)
        return false;
    rway_filter_judge(table, headers, in_port, counts, 100);
    rway_filter_table_free(table);
    EXPECT(counts[0].frames + counts[1].frames == 1 && counts[0].bytes + counts[1].bytes == 100);
    return counts[0].frames == 1;
}

static void a_rule_without_fields_matches_everything(void)
{
    struct rway_rule rule = rule_named("all", RWAY_ALLOW);
    struct rway_headers packet = tcp_packet(80);
    struct rway_headers length = {.l3_offset = 14};

    EXPECT(matches(&rule, &packet, 0) && matches(&rule, &length, 7));
}

static void every_field_of_a_rule_counts(void)
{
    struct rway_headers packet = tcp_packet(80);
    struct rway_rule rule = tcp_port_rule("r", RWAY_ALLOW, 80, 80);

    EXPECT(matches(&rule, &packet, 0));
    packet.destination_port = 81;
    EXPECT(!matches(&rule, &packet, 0));
    rule.destination_port_high = 90;
    EXPECT(matches(&rule, &packet, 0));
    rule.match |= RWAY_MATCH_IN_PORT;
    rule.in_port = 1;
    EXPECT(!matches(&rule, &packet, 0) && matches(&rule, &packet, 1));
    rule.match = RWAY_MATCH_ETHER;
    rule.ether = 0x0806;
    EXPECT(!matches(&rule, &packet, 0));
    packet.ether = 0x0806;
    EXPECT(matches(&rule, &packet, 0));
}

static void tcp_flags_match_under_their_mask(void)
{
    struct rway_headers packet = tcp_packet(80);
    struct rway_rule syn = rule_named("syn", RWAY_DENY);

    syn.match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_TCP_FLAGS;
    syn.protocol = IPPROTO_TCP;
    syn.tcp_mask = 0x12;
    syn.tcp_value = 0x02;
    EXPECT(matches(&syn, &packet, 0));
    packet.tcp_flags = 0x12;
    EXPECT(!matches(&syn, &packet, 0));
    packet.tcp_flags = 0xc2;
    EXPECT(matches(&syn, &packet, 0));
}

static void a_prefix_matches_its_own_family_only(void)
{
    struct rway_headers packet = tcp_packet(80);
    struct rway_headers packet6 = tcp_packet(80);
    struct rway_rule rule = rule_named("net", RWAY_DENY);

    packet6.ip_version = 6;
    rule.match = RWAY_MATCH_SOURCE;
    rule.ip_version = 4;
    rule.source[0] = 10;
    rule.source[1] = 1;
    rule.source[3] = 99; /* behind the prefix */
    rule.source_bits = 23;
    EXPECT(matches(&rule, &packet, 0) == false); /* 10.1.2 is not in 10.1.0/23 */
    packet.source[2] = 1;
    EXPECT(matches(&rule, &packet, 0));
    EXPECT(!matches(&rule, &packet6, 0));
    rule.source_bits = 0;
    EXPECT(matches(&rule, &packet, 0) && !matches(&rule, &packet6, 0));
}

static void a_later_fragment_matches_no_rule_with_ports_or_flags(void)
{
    struct rway_headers fragment = tcp_packet(0);
    struct rway_rule ports = tcp_port_rule("ports", RWAY_ALLOW, 0, 65535);
    struct rway_rule flags = rule_named("flags", RWAY_ALLOW);
    struct rway_rule protocol = rule_named("protocol", RWAY_ALLOW);

    fragment.flags = RWAY_HEADERS_LATER_FRAGMENT;
    fragment.tcp_flags = 0;
    flags.match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_TCP_FLAGS;
    flags.protocol = IPPROTO_TCP;
    protocol.match = RWAY_MATCH_PROTOCOL;
    protocol.protocol = IPPROTO_TCP;
    EXPECT(!matches(&ports, &fragment, 0) && !matches(&flags, &fragment, 0) && matches(&protocol, &fragment, 0));
}

static void a_frame_that_is_not_ip_matches_no_rule_about_ip(void)
{
    struct rway_headers arp = {.ether = 0x0806, .l3_offset = 14};
    struct rway_rule protocol = rule_named("protocol 0", RWAY_ALLOW);
    struct rway_rule source = rule_named("source", RWAY_ALLOW);

    protocol.match = RWAY_MATCH_PROTOCOL;
    source.match = RWAY_MATCH_SOURCE;
    source.ip_version = 4;
    EXPECT(!matches(&protocol, &arp, 0) && !matches(&source, &arp, 0));
}

static void icmp_and_vlan_are_matched_where_a_frame_has_them(void)
{
    struct rway_headers ping = {.ether = 0x0800, .ip_version = 4, .protocol = IPPROTO_ICMP, .flags = RWAY_HEADERS_ICMP};
    struct rway_headers fragment = ping;
    struct rway_headers tagged = tcp_packet(80);
    struct rway_rule type = rule_named("r", RWAY_ALLOW);
    struct rway_rule code = type;
    struct rway_rule vlan = rule_named("r", RWAY_ALLOW);

    ping.icmp_type = 8;
    fragment.flags = RWAY_HEADERS_LATER_FRAGMENT;
    type.protocol = IPPROTO_ICMP;
    code.protocol = IPPROTO_ICMP;
    type.match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_ICMP_TYPE;
    type.icmp_type = 8;
    EXPECT(matches(&type, &ping, 0));
    type.icmp_type = 0;
    EXPECT(!matches(&type, &ping, 0) && !matches(&type, &fragment, 0));
    code.match = RWAY_MATCH_PROTOCOL | RWAY_MATCH_ICMP_CODE;
    EXPECT(matches(&code, &ping, 0) && !matches(&code, &fragment, 0));
    code.icmp_code = 1;
    EXPECT(!matches(&code, &ping, 0));
    vlan.match = RWAY_MATCH_VLAN;
    EXPECT(matches(&vlan, &ping, 0));
    tagged.vlan = 5;
    EXPECT(!matches(&vlan, &tagged, 0));
    vlan.vlan = 5;
    EXPECT(matches(&vlan, &tagged, 0) && !matches(&vlan, &ping, 0));
}

static void what_cannot_be_judged_passes_only_where_that_was_asked_for(void)
{
    struct rway_filter_table *table = rway_filter_table_new(NULL, 0, RWAY_ALLOW, NULL);
    struct rway_unparsed_counts counts;

    memset(&counts, 0, sizeof(counts));
    EXPECT(rway_filter_judge_unparsed(table, RWAY_MALFORMED_VLAN, &counts) == RWAY_DROP_MALFORMED);
    rway_filter_table_pass_unparsed(table);
    EXPECT(rway_filter_judge_unparsed(table, RWAY_MALFORMED_VLAN, &counts) == RWAY_PASSES);
    EXPECT(rway_filter_judge_unparsed(table, RWAY_MALFORMED_TOO_LONG, &counts) == RWAY_PASSES);
    EXPECT(rway_filter_judge_unparsed(table, RWAY_MALFORMED_ETHERNET, &counts) == RWAY_DROP_MALFORMED);
    EXPECT(counts.dropped[RWAY_MALFORMED_VLAN] == 1 && counts.passed[RWAY_MALFORMED_VLAN] == 1);
    EXPECT(counts.passed[RWAY_MALFORMED_TOO_LONG] == 1 && counts.dropped[RWAY_MALFORMED_ETHERNET] == 1);
    rway_filter_table_free(table);
}

static void the_first_rule_that_matches_decides(void)
{
    struct rway_rule rules[] = {tcp_port_rule("web", RWAY_ALLOW, 80, 80), tcp_port_rule("low", RWAY_DENY, 0, 1023)};
    struct rway_filter_table *table = rway_filter_table_new(rules, 2, RWAY_ALLOW, NULL);
    struct rway_headers web = tcp_packet(80);
    struct rway_headers telnet = tcp_packet(23);
    struct rway_headers high = tcp_packet(2000);
    struct rway_rule_counts counts[3];

    memset(counts, 0, sizeof(counts));
    EXPECT(rway_filter_judge(table, &web, 0, counts, 60) == RWAY_ALLOW);
    EXPECT(rway_filter_judge(table, &telnet, 0, counts, 61) == RWAY_DENY);
    EXPECT(rway_filter_judge(table, &high, 0, counts, 62) == RWAY_ALLOW);
    EXPECT(rway_filter_judge(table, &high, 0, counts, 63) == RWAY_ALLOW);
    EXPECT(counts[0].frames == 1 && counts[0].bytes == 60 && counts[1].frames == 1 && counts[1].bytes == 61);
    EXPECT(counts[2].frames == 2 && counts[2].bytes == 125);
    rway_filter_table_free(table);
}

static void check_refused(struct rway_rule rule, const char *what)
{
    struct rway_error error;

    memset(&error, 0, sizeof(error));
    EXPECT(rway_rule_check(&rule, &error) == -RWAY_REFUSED_ARGUMENT);
    EXPECT(error.cause == RWAY_REFUSED_ARGUMENT && strcmp(error.what, what) == 0);
    EXPECT(rway_filter_table_new(&rule, 1, RWAY_DENY, NULL) == NULL);
}

static void rules_that_cannot_be_are_refused_by_field(void)
{
    struct rway_rule good = tcp_port_rule("r", RWAY_ALLOW, 1, 2);
    struct rway_rule bad = good;

    EXPECT(rway_rule_check(&good, NULL) == 0);
    bad.name[0] = 0;
    check_refused(bad, "length of name");
    memset(bad.name, 'x', sizeof(bad.name));
    check_refused(bad, "length of name");
    bad = good;
    bad.action = 2;
    check_refused(bad, "action");
    bad = good;
    bad.match |= RWAY_MATCHES_KNOWN + 1;
    check_refused(bad, "match");
    bad = good;
    bad.ip_version = 4;
    check_refused(bad, "ip_version");
    bad.match |= RWAY_MATCH_SOURCE;
    bad.source_bits = 33;
    check_refused(bad, "source_bits");
    bad.source_bits = 32;
    bad.ip_version = 5;
    check_refused(bad, "ip_version");
    bad = good;
    bad.match |= RWAY_MATCH_DESTINATION;
    bad.ip_version = 6;
    bad.destination_bits = 129;
    check_refused(bad, "destination_bits");
    bad = good;
    bad.protocol = IPPROTO_ICMP;
    check_refused(bad, "protocol of a rule with ports");
    bad = good;
    bad.destination_port_low = 3;
    check_refused(bad, "destination_port_low");
    bad = good;
    bad.match |= RWAY_MATCH_TCP_FLAGS;
    bad.tcp_value = 1;
    check_refused(bad, "tcp_value");
    bad.protocol = IPPROTO_UDP;
    check_refused(bad, "protocol of a rule with tcp flags");
}

static void tables_that_cannot_be_are_refused(void)
{
    static struct rway_rule many[RWAY_RULES_MAX + 1];
    struct rway_error error;

    for (uint32_t index = 0; index <= RWAY_RULES_MAX; index++)
        snprintf(many[index].name, sizeof(many[index].name), "rule %u", index);
    EXPECT(rway_filter_table_new(many, RWAY_RULES_MAX + 1, RWAY_DENY, &error) == NULL);
    EXPECT(strcmp(error.what, "number of rules") == 0 && error.found == RWAY_RULES_MAX + 1);
    EXPECT(rway_filter_table_new(many, 1, 2, &error) == NULL && strcmp(error.what, "default action") == 0);
    memcpy(many[1].name, many[0].name, sizeof(many[0].name));
    EXPECT(rway_filter_table_new(many, 2, RWAY_DENY, &error) == NULL);
    EXPECT(strcmp(error.what, "rules of the same name") == 0);
}

int main(void)
{
    a_rule_without_fields_matches_everything();
    every_field_of_a_rule_counts();
    tcp_flags_match_under_their_mask();
    a_prefix_matches_its_own_family_only();
    a_later_fragment_matches_no_rule_with_ports_or_flags();
    a_frame_that_is_not_ip_matches_no_rule_about_ip();
    icmp_and_vlan_are_matched_where_a_frame_has_them();
    what_cannot_be_judged_passes_only_where_that_was_asked_for();
    the_first_rule_that_matches_decides();
    rules_that_cannot_be_are_refused_by_field();
    tables_that_cannot_be_are_refused();
    return failures != 0;
}
