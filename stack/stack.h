/* What the sources of stack/ share: guards, the public declarations, protocol numbers, the inside of a rule table. */

#ifndef RWAY_STACK_H
#define RWAY_STACK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/job.h"

#pragma GCC visibility push(default)
#include "api.h"
#include "function_api.h"
#pragma GCC visibility pop

/* Ethernet types, as the IEEE registry numbers them. */
enum {
    RWAY_ETHER_HEADER = 14,
    RWAY_ETHER_IP4 = 0x0800,
    RWAY_ETHER_ARP = 0x0806,
    RWAY_ETHER_VLAN = 0x8100, /* 802.1Q */
    RWAY_ETHER_QINQ = 0x88a8, /* 802.1ad */
    RWAY_ETHER_IP6 = 0x86dd,
    RWAY_ETHER_TYPES = 0x0600 /* below it the field is an 802.3 length */
};

/* A rule made ready for comparing: prefixes as masked words. */
struct rway_compiled {
    uint64_t source[2];
    uint64_t source_mask[2];
    uint64_t destination[2];
    uint64_t destination_mask[2];
    uint32_t match;
    uint32_t in_port;
    uint32_t action;
    uint16_t ether;
    uint8_t protocol;
    uint8_t ip_version; /* 0: any */
    uint16_t source_port_low;
    uint16_t source_port_high;
    uint16_t destination_port_low;
    uint16_t destination_port_high;
    uint8_t tcp_mask;
    uint8_t tcp_value;
    uint16_t vlan;
    uint8_t icmp_type;
    uint8_t icmp_code;
};

struct rway_filter_table {
    uint32_t count;
    uint32_t default_action;
    bool passes_unparsed;
    struct rway_compiled *rules;
    char (*names)[64];
    struct rway_rule_counts *counts;  /* RWAY_READERS_MAX rows of row_length; each written by one reader */
    size_t row_length;                /* count + 1, rounded up to whole lines */
    struct rway_rule_counts *carried; /* count + 1, from tables before this one; guarded by the filter's lock */
    uint32_t generation;              /* of all tables of its filter, this is which */
    struct rway_filter_table *next;   /* once retired: the one retired before */
    uint64_t retired_at;              /* the epoch from which on nobody can find it */
};

/* The counts of a reader in this table. */
static inline struct rway_rule_counts *rway_filter_table_row(const struct rway_filter_table *table, uint32_t reader)
{
    return table->counts + (size_t)reader * table->row_length;
}

/* Relaxed: the count belongs to one reader, and the sum wants whole words only (rway_filter_counts). */
static inline void rway_count_frame(struct rway_rule_counts *counts, uint32_t frame_len)
{
    rway_write_once(&counts->frames, counts->frames + 1);
    rway_write_once(&counts->bytes, counts->bytes + frame_len);
}

/* The index of the rule that matches, or of the default; and what that says: enum rway_action. Counts nothing. */
uint32_t rway_filter_find(const struct rway_filter_table *table, const struct rway_headers *headers, uint32_t in_port);
int rway_filter_action(const struct rway_filter_table *table, uint32_t index);

/* Does this one rule match, whatever stands before it? The default matches everything. */
bool rway_filter_matches(const struct rway_filter_table *table, uint32_t index, const struct rway_headers *headers,
                         uint32_t in_port);

#endif
