/* Checks filter rules, compiles them into a table, and judges packets by it: the first rule that matches decides. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stack.h"

enum { COUNTS_PER_LINE = RWAY_LINE / sizeof(struct rway_rule_counts) };
enum { VLAN_MAX = 4094 }; /* IEEE 802.1Q: 4095 is reserved */

static int refuse_field(struct rway_error *error, const char *what, uint64_t found, uint64_t expected)
{
    return rway_refuse(error, RWAY_REFUSED_ARGUMENT, what, found, expected);
}

static bool has_ports(uint8_t protocol)
{
    return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static int check_addresses(const struct rway_rule *rule, struct rway_error *error)
{
    uint8_t bits_max = rule->ip_version == 4 ? 32 : 128;

    if (!(rule->match & (RWAY_MATCH_SOURCE | RWAY_MATCH_DESTINATION)))
        return rule->ip_version == 0 ? 0 : refuse_field(error, "ip_version", rule->ip_version, 0);
    if (rule->ip_version != 4 && rule->ip_version != 6)
        return refuse_field(error, "ip_version", rule->ip_version, 4);
    if (rule->match & RWAY_MATCH_SOURCE && rule->source_bits > bits_max)
        return refuse_field(error, "source_bits", rule->source_bits, bits_max);
    if (rule->match & RWAY_MATCH_DESTINATION && rule->destination_bits > bits_max)
        return refuse_field(error, "destination_bits", rule->destination_bits, bits_max);
    return 0;
}

static int check_transport(const struct rway_rule *rule, struct rway_error *error)
{
    uint8_t protocol = rule->match & RWAY_MATCH_PROTOCOL ? rule->protocol : 0;

    if (rule->match & (RWAY_MATCH_SOURCE_PORT | RWAY_MATCH_DESTINATION_PORT) && !has_ports(protocol))
        return refuse_field(error, "protocol of a rule with ports", protocol, IPPROTO_TCP);
    if (rule->match & RWAY_MATCH_TCP_FLAGS && protocol != IPPROTO_TCP)
        return refuse_field(error, "protocol of a rule with tcp flags", protocol, IPPROTO_TCP);
    if (rule->match & RWAY_MATCH_SOURCE_PORT && rule->source_port_low > rule->source_port_high)
        return refuse_field(error, "source_port_low", rule->source_port_low, rule->source_port_high);
    if (rule->match & RWAY_MATCH_DESTINATION_PORT && rule->destination_port_low > rule->destination_port_high)
        return refuse_field(error, "destination_port_low", rule->destination_port_low, rule->destination_port_high);
    if (rule->match & RWAY_MATCH_TCP_FLAGS && rule->tcp_value & ~rule->tcp_mask)
        return refuse_field(error, "tcp_value", rule->tcp_value, rule->tcp_mask);
    if (rule->match & (RWAY_MATCH_ICMP_TYPE | RWAY_MATCH_ICMP_CODE) && protocol != IPPROTO_ICMP &&
        protocol != IPPROTO_ICMPV6)
        return refuse_field(error, "protocol of a rule with an ICMP type", protocol, IPPROTO_ICMP);
    if (rule->match & RWAY_MATCH_VLAN && rule->vlan > VLAN_MAX)
        return refuse_field(error, "vlan", rule->vlan, VLAN_MAX);
    return 0;
}

int rway_rule_check(const struct rway_rule *rule, struct rway_error *error)
{
    size_t name_len = strnlen(rule->name, sizeof(rule->name));
    int result;

    if (name_len == 0 || name_len == sizeof(rule->name))
        return refuse_field(error, "length of name", name_len, sizeof(rule->name) - 1);
    if (rule->action != RWAY_ALLOW && rule->action != RWAY_DENY)
        return refuse_field(error, "action", rule->action, RWAY_ALLOW);
    if (rule->match & ~(uint32_t)RWAY_MATCHES_KNOWN)
        return refuse_field(error, "match", rule->match, RWAY_MATCHES_KNOWN);
    result = check_addresses(rule, error);
    return result == 0 ? check_transport(rule, error) : result;
}

/* Where a name stood before; a name twice would make the counts of the one those of the other. */
static uint32_t find_name(const struct rway_rule *rules, uint32_t count, const char *name)
{
    uint32_t index = 0;

    while (index < count && strcmp(rules[index].name, name) != 0)
        index++;
    return index;
}

static int check_rules(const struct rway_rule *rules, uint32_t count, uint32_t default_action, struct rway_error *error)
{
    if (count > RWAY_RULES_MAX)
        return refuse_field(error, "number of rules", count, RWAY_RULES_MAX);
    if (default_action != RWAY_ALLOW && default_action != RWAY_DENY)
        return refuse_field(error, "default action", default_action, RWAY_ALLOW);
    for (uint32_t index = 0; index < count; index++) {
        int result = rway_rule_check(&rules[index], error);

        if (result != 0)
            return result;
        if (find_name(rules, index, rules[index].name) != index)
            return refuse_field(error, "rules of the same name", 2, 1);
    }
    return 0;
}

static void compile_prefix(const uint8_t *address, uint8_t bits, uint64_t *value, uint64_t *mask)
{
    uint8_t mask_bytes[16] = {0};
    uint8_t value_bytes[16] = {0};

    for (uint32_t bit = 0; bit < bits; bit++)
        mask_bytes[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
    for (uint32_t index = 0; index < 16; index++)
        value_bytes[index] = address[index] & mask_bytes[index];
    memcpy(mask, mask_bytes, sizeof(mask_bytes));
    memcpy(value, value_bytes, sizeof(value_bytes));
}

static void compile(const struct rway_rule *rule, struct rway_compiled *out)
{
    *out = (struct rway_compiled){
        .match = rule->match,
        .in_port = rule->in_port,
        .action = rule->action,
        .ether = rule->ether,
        .protocol = rule->protocol,
        .ip_version = rule->ip_version,
        .source_port_low = rule->source_port_low,
        .source_port_high = rule->source_port_high,
        .destination_port_low = rule->destination_port_low,
        .destination_port_high = rule->destination_port_high,
        .tcp_mask = rule->tcp_mask,
        .tcp_value = rule->tcp_value,
        .vlan = rule->vlan,
        .icmp_type = rule->icmp_type,
        .icmp_code = rule->icmp_code,
    };
    if (rule->match & RWAY_MATCH_SOURCE)
        compile_prefix(rule->source, rule->source_bits, out->source, out->source_mask);
    if (rule->match & RWAY_MATCH_DESTINATION)
        compile_prefix(rule->destination, rule->destination_bits, out->destination, out->destination_mask);
}

/* Rows start on a line, so that two readers never write the same one. */
static int allocate(struct rway_filter_table *table, uint32_t count)
{
    size_t lines = (count + COUNTS_PER_LINE) / COUNTS_PER_LINE; /* of count + 1 */
    size_t rows_size = lines * RWAY_LINE * RWAY_READERS_MAX;

    table->row_length = lines * COUNTS_PER_LINE;
    table->rules = calloc(count + 1, sizeof(*table->rules));
    table->names = calloc(count + 1, sizeof(*table->names));
    table->carried = calloc(count + 1, sizeof(*table->carried));
    table->counts = aligned_alloc(RWAY_LINE, rows_size);
    if (!table->rules || !table->names || !table->carried || !table->counts)
        return -1;
    memset(table->counts, 0, rows_size);
    return 0;
}

struct rway_filter_table *rway_filter_table_new(const struct rway_rule *rules, uint32_t count, uint32_t default_action,
                                                struct rway_error *error)
{
    struct rway_filter_table *table;

    if (check_rules(rules, count, default_action, error) != 0)
        return NULL;
    table = calloc(1, sizeof(*table));
    if (!table || allocate(table, count) != 0) {
        rway_refuse(error, RWAY_REFUSED_SYSTEM, "memory for a rule table", 0, 0);
        if (error)
            error->sys_errno = ENOMEM;
        rway_filter_table_free(table);
        return NULL;
    }
    table->count = count;
    table->default_action = default_action;
    for (uint32_t index = 0; index < count; index++) {
        compile(&rules[index], &table->rules[index]);
        memcpy(table->names[index], rules[index].name, sizeof(table->names[index]));
    }
    return table;
}

void rway_filter_table_pass_unparsed(struct rway_filter_table *table)
{
    table->passes_unparsed = true;
}

int rway_filter_judge_unparsed(const struct rway_filter_table *table, int cause, struct rway_unparsed_counts *counts)
{
    bool passes = table->passes_unparsed && cause != RWAY_MALFORMED_ETHERNET;
    uint64_t *counter = passes ? &counts->passed[cause] : &counts->dropped[cause];

    /* Relaxed, as in rway_count_frame. */
    rway_write_once(counter, *counter + 1);
    return passes ? RWAY_PASSES : RWAY_DROP_MALFORMED;
}

void rway_filter_table_free(struct rway_filter_table *table)
{
    if (!table)
        return;
    free(table->rules);
    free(table->names);
    free(table->carried);
    free(table->counts);
    free(table);
}

/* What a rule may ask of this packet: enum rway_match. A rule that asks for more cannot match. */
static uint32_t answerable(const struct rway_headers *headers)
{
    uint32_t match = RWAY_MATCH_IN_PORT | RWAY_MATCH_ETHER | RWAY_MATCH_VLAN;

    if (headers->ip_version != 0)
        match |= RWAY_MATCH_PROTOCOL | RWAY_MATCH_SOURCE | RWAY_MATCH_DESTINATION;
    if (headers->flags & RWAY_HEADERS_PORTS)
        match |= RWAY_MATCH_SOURCE_PORT | RWAY_MATCH_DESTINATION_PORT;
    if (headers->flags & RWAY_HEADERS_PORTS && headers->protocol == IPPROTO_TCP)
        match |= RWAY_MATCH_TCP_FLAGS;
    if (headers->flags & RWAY_HEADERS_ICMP)
        match |= RWAY_MATCH_ICMP_TYPE | RWAY_MATCH_ICMP_CODE;
    return match;
}

static bool in_prefix(const uint8_t *address, const uint64_t *value, const uint64_t *mask)
{
    uint64_t words[2];

    memcpy(words, address, sizeof(words));
    return (((words[0] & mask[0]) ^ value[0]) | ((words[1] & mask[1]) ^ value[1])) == 0;
}

static bool matches(const struct rway_compiled *rule, const struct rway_headers *headers, uint32_t in_port)
{
    uint32_t match = rule->match;

    if (rule->ip_version != 0 && rule->ip_version != headers->ip_version)
        return false;
    if (match & RWAY_MATCH_IN_PORT && rule->in_port != in_port)
        return false;
    if (match & RWAY_MATCH_ETHER && rule->ether != headers->ether)
        return false;
    if (match & RWAY_MATCH_PROTOCOL && rule->protocol != headers->protocol)
        return false;
    if (match & RWAY_MATCH_SOURCE_PORT &&
        (headers->source_port < rule->source_port_low || headers->source_port > rule->source_port_high))
        return false;
    if (match & RWAY_MATCH_DESTINATION_PORT && (headers->destination_port < rule->destination_port_low ||
                                                headers->destination_port > rule->destination_port_high))
        return false;
    if (match & RWAY_MATCH_TCP_FLAGS && (headers->tcp_flags & rule->tcp_mask) != rule->tcp_value)
        return false;
    if (match & RWAY_MATCH_ICMP_TYPE && rule->icmp_type != headers->icmp_type)
        return false;
    if (match & RWAY_MATCH_ICMP_CODE && rule->icmp_code != headers->icmp_code)
        return false;
    if (match & RWAY_MATCH_VLAN && rule->vlan != headers->vlan)
        return false;
    if (match & RWAY_MATCH_SOURCE && !in_prefix(headers->source, rule->source, rule->source_mask))
        return false;
    return !(match & RWAY_MATCH_DESTINATION) ||
           in_prefix(headers->destination, rule->destination, rule->destination_mask);
}

uint32_t rway_filter_find(const struct rway_filter_table *table, const struct rway_headers *headers, uint32_t in_port)
{
    uint32_t unanswerable = ~answerable(headers);
    uint32_t index = 0;

    while (index < table->count &&
           (table->rules[index].match & unanswerable || !matches(&table->rules[index], headers, in_port)))
        index++;
    return index;
}

bool rway_filter_matches(const struct rway_filter_table *table, uint32_t index, const struct rway_headers *headers,
                         uint32_t in_port)
{
    if (index >= table->count)
        return true;
    return !(table->rules[index].match & ~answerable(headers)) && matches(&table->rules[index], headers, in_port);
}

int rway_filter_action(const struct rway_filter_table *table, uint32_t index)
{
    return (int)(index < table->count ? table->rules[index].action : table->default_action);
}

int rway_filter_judge(const struct rway_filter_table *table, const struct rway_headers *headers, uint32_t in_port,
                      struct rway_rule_counts *counts, uint32_t frame_len)
{
    uint32_t index = rway_filter_find(table, headers, in_port);

    rway_count_frame(&counts[index], frame_len);
    return rway_filter_action(table, index);
}
