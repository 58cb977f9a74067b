/*
 * The inside of a flow table: the connections that a filter remembers.
 *
 *      key ──SipHash──► two buckets of 8 places. A bucket is one cache line:
 *
 *      ┌ tags ×8 ┬ deadlines ×8 ┬ states ×8 ┬ lock ┐   place i of bucket b is flow 8b + i, a line of its own
 *      └─ 16 B ──┴──── 32 B ────┴─── 8 B ───┴──────┘
 *
 * What changes with every frame stands in the bucket; a flow's own line is written when it is made and while TCP's
 * handshake runs, and otherwise read only, to compare the whole key. So a frame costs two lines, and both can be
 * fetched for a whole burst at once. All of it is the agent's private memory: no peer writes here.
 */
#ifndef RWAY_STACK_FLOW_H
#define RWAY_STACK_FLOW_H

#include "stack.h"

enum {
    RWAY_FLOW_WAYS = 8,      /* places of a bucket */
    RWAY_FLOW_KEY_WORDS = 6, /* 64-bit words */
    RWAY_FLOW_BURST = 32,    /* frames whose fetches overlap */
    RWAY_DATAGRAM_BUCKETS = 512,
    RWAY_DATAGRAMS_SIZE = RWAY_DATAGRAM_BUCKETS * 8 * RWAY_LINE
};

/*
 * Which connection a frame belongs to, the same from both directions. Each end is an address, a port and the number of
 * the port by which it is reached; the lower end stands first. Compared as a whole, always.
 *
 *      words 0, 1   lower address, IPv4 in the first four bytes      word 4   ports: lower end's, then higher end's,
 *      words 2, 3   higher address                                            then the ports by which they are reached
 *      word 5       VLAN ids (32 bits), protocol (8), IP version (8), 0
 */
struct rway_flow_key {
    uint64_t words[RWAY_FLOW_KEY_WORDS];
};

/* One place of a table. Guarded by the lock of its bucket. */
struct rway_flow {
    struct rway_flow_key key;
    uint32_t generation; /* of the rule table that let it in */
    uint32_t sequence;   /* TCP: the acknowledgement number that the next step of the handshake must carry */
    uint8_t opened_low;  /* the lower end opened it */
    uint8_t tcp_flags;   /* of the frame that opened it */
    uint8_t pad[6];
};

/* What a flow has been through. 0 is a free place. */
enum rway_flow_state {
    RWAY_FLOW_OPENING = 1,     /* nothing came back, or nothing that counts */
    RWAY_FLOW_ANSWERED = 2,    /* TCP: the SYN was acknowledged; the opener's acknowledgement is still to come */
    RWAY_FLOW_ESTABLISHED = 3, /* both ends have shown that they hear each other */
    RWAY_FLOW_PHASE = 3,       /* the bits of the three above */
    RWAY_FLOW_OPENER_FIN = 4,  /* TCP, from here on */
    RWAY_FLOW_OTHER_FIN = 8,
    RWAY_FLOW_FINS = 12,
    RWAY_FLOW_OPENER_RST = 16, /* it has sent one, and the other end has not gone on since */
    RWAY_FLOW_OTHER_RST = 32,
    RWAY_FLOW_RSTS = 48,
    RWAY_FLOW_DENIED = 64 /* newer rules would not have let it in */
};

struct rway_flow_bucket {
    uint64_t tags[2];                   /* 16 bits for each place, 0 when it is free */
    uint32_t deadlines[RWAY_FLOW_WAYS]; /* the last second in which the place is in use */
    uint8_t states[RWAY_FLOW_WAYS];     /* enum rway_flow_state */
    uint32_t lock;
    uint32_t pad;
};

struct rway_flows {
    struct rway_flow_bucket *buckets;
    struct rway_flow *flows;                /* RWAY_FLOW_WAYS for each bucket */
    struct rway_datagram_bucket *datagrams; /* RWAY_DATAGRAM_BUCKETS of them */
    uint32_t bucket_count;
    struct rway_flow_timeouts timeouts;
    uint64_t secret[2];
    size_t size; /* bytes of the mapping, which begins at buckets */
};

/* Where a key may stand. */
struct rway_flow_probe {
    uint32_t first; /* buckets; may be the same */
    uint32_t second;
    uint64_t tag; /* in each of four 16-bit lanes */
};

/* A bucket or two, locked; and the flow that was looked for, or that was made. */
struct rway_flow_hold {
    struct rway_flow_bucket *buckets[2]; /* NULL: not locked */
    struct rway_flow_bucket *bucket;     /* that the flow stands in */
    struct rway_flow *flow;              /* NULL: there is none */
    uint32_t way;
};

/* Room for connections of them, zeroed and present, with a secret of its own. NULL on refusal. */
struct rway_flows *rway_flows_new(uint32_t connections, const struct rway_flow_timeouts *timeouts,
                                  struct rway_error *error);
void rway_flows_free(struct rway_flows *flows);

/* Under the table's secret. */
uint64_t rway_flow_keyed_hash(const struct rway_flows *flows, const struct rway_flow_key *key);

static inline bool rway_flow_key_equal(const struct rway_flow_key *one, const struct rway_flow_key *other)
{
    uint64_t difference = 0;

    for (uint32_t word = 0; word < RWAY_FLOW_KEY_WORDS; word++)
        difference |= one->words[word] ^ other->words[word];
    return difference == 0;
}

struct rway_flow_probe rway_flow_probe(const struct rway_flows *flows, const struct rway_flow_key *key);

/* Fetch what a find will need; each of the three steps for a whole burst before the next one. */
void rway_flow_fetch_first(const struct rway_flows *flows, const struct rway_flow_probe *probe);
bool rway_flow_fetch_flow(const struct rway_flows *flows, const struct rway_flow_probe *probe);
void rway_flow_fetch_second(const struct rway_flows *flows, const struct rway_flow_probe *probe);

/*
 * Find the flow and lock what it stands in; an expired one is found too. When there is none, both buckets stay locked,
 * so that nobody else can make it meanwhile. Let go before the next find.
 */
void rway_flow_find(const struct rway_flows *flows, const struct rway_flow_probe *probe,
                    const struct rway_flow_key *key, struct rway_flow_hold *hold);
void rway_flow_let_go(struct rway_flow_hold *hold);

/* What became of the place that rway_flow_make gave. */
enum rway_flow_made { RWAY_FLOW_NO_ROOM, RWAY_FLOW_IN_FREE, RWAY_FLOW_FOR_EXPIRED, RWAY_FLOW_FOR_ANOTHER };

/*
 * Take a place for the key that hold was looking for: its own if it was found; else a free or expired one; else that
 * of a flow which nothing is lost with. The caller fills in the rest of it.
 */
enum rway_flow_made rway_flow_make(const struct rway_flows *flows, const struct rway_flow_probe *probe,
                                   const struct rway_flow_key *key, uint32_t now, struct rway_flow_hold *hold);

/* Free what has expired in a bucket. Returns how many that were. */
uint32_t rway_flow_sweep(const struct rway_flows *flows, uint32_t bucket, uint32_t now);

/* RWAY_READERS_MAX of them, freed with free(); one; what it has counted, added to a sum. */
struct rway_flow_reader *rway_flow_readers_new(struct rway_flows *flows);
struct rway_flow_reader *rway_flow_reader_at(struct rway_flow_reader *readers, uint32_t reader);
void rway_flow_counts_add(const struct rway_flow_reader *reader, struct rway_flow_counts *sum);

/* Signed, so that also a wrapped clock compares. */
static inline bool rway_flow_expired(uint32_t deadline, uint32_t now)
{
    return (int32_t)(now - deadline) > 0;
}

/* ---- which connection a frame belongs to: flow_key.c ---- */

/* Fields of a key. */
static inline uint8_t rway_flow_protocol(const struct rway_flow_key *key)
{
    return (uint8_t)(key->words[5] >> 32);
}

/*
 * The VLANs that the frame is in, the outer one first: connections with the same addresses in two VLANs are two.
 * VLAN id 0 is a priority and no VLAN (IEEE 802.1Q).
 */
uint32_t rway_flow_vlan_ids(const struct rway_judged *frame);

/*
 * The key of a frame that came in by in_port and would leave by out_port. False when it is of no connection that can
 * be followed. from_low: it was sent by the lower end.
 */
bool rway_flow_key_of(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port, struct rway_flow_key *key,
                      bool *from_low);

/* The key of the packet that an ICMP or ICMPv6 error is about; false when the frame is no such error. */
bool rway_flow_key_of_error(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port,
                            struct rway_flow_key *key);

/* What rules are asked about one direction of a flow. Returns the number of the port by which it comes in. */
uint32_t rway_flow_headers(const struct rway_flow_key *key, bool from_low, uint8_t tcp_flags,
                           struct rway_headers *headers);

/* May this frame of a protocol other than TCP open a connection? UDP, SCTP and echo requests do. */
bool rway_flow_opens(const struct rway_judged *frame);

/* ---- fragments: flow_datagram.c ---- */

/* After the verdict over the first fragment of a datagram: those behind it will follow it. */
void rway_datagram_note_first(const struct rway_flows *flows, const struct rway_judged *frame, uint32_t in_port,
                              uint32_t out_port, uint32_t now);

/* Does this fragment follow a first one that passed? */
bool rway_datagram_passes_later(const struct rway_flows *flows, const struct rway_judged *frame, uint32_t in_port,
                                uint32_t out_port, uint32_t now);

/* ---- what a connection has been through: flow_state.c ---- */

enum rway_flow_opening { RWAY_FLOW_OPENS_NOTHING, RWAY_FLOW_OPENS, RWAY_FLOW_UNDER_WAY };

/* What a TCP frame of no known connection may begin: one that opens, or one of which the beginning was not seen. */
enum rway_flow_opening rway_flow_opens_tcp(uint8_t flags);

/*
 * Does any segment have these flags together (RFC 9293 3.10)? None is without SYN, RST and ACK, as those of NULL and
 * Xmas scans are, and none opens and closes at once. What receivers make of others differs.
 */
static inline bool rway_flow_is_segment(uint8_t tcp_flags)
{
    enum { FIN_BIT = 1, SYN_BIT = 2, RST_BIT = 4, ACK_BIT = 16 };

    if (tcp_flags & (SYN_BIT | RST_BIT))
        return (tcp_flags & (SYN_BIT | RST_BIT | FIN_BIT)) == (tcp_flags & SYN_BIT ? SYN_BIT : RST_BIT);
    return (tcp_flags & ACK_BIT) != 0;
}

/* The state of a flow that this frame has just opened; sequence is set. */
uint8_t rway_flow_begin(struct rway_flow *flow, const struct rway_judged *frame);

/* The state after one more frame, from the opener or the other end. */
uint8_t rway_flow_advance(struct rway_flow *flow, uint8_t state, const struct rway_judged *frame, bool from_opener);

/* Is this frame a new attempt, to be judged by the rules, although the flow is known? */
bool rway_flow_begins_anew(const struct rway_flow *flow, uint8_t state, const struct rway_judged *frame,
                           bool from_opener);

/* Seconds that a flow in this state is remembered without a frame. */
uint32_t rway_flow_timeout(const struct rway_flow_timeouts *timeouts, uint8_t protocol, uint8_t state);

/* How readily a flow gives way to a new one: 0 not at all, the highest first. */
uint32_t rway_flow_yields(uint8_t state);

#endif
