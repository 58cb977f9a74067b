/*
 * The inside of a connection table: the connections that a filter remembers.
 *
 *      key ──SipHash──► two buckets of 8 places. A bucket is one cache line:
 *
 *      ┌ tags ×8 ┬ deadlines ×8 ┬ states ×8 ┬ lock ┐   place i of bucket b is connection 8b + i, a line of its own
 *      └─ 16 B ──┴──── 32 B ────┴─── 8 B ───┴──────┘
 *
 * What changes with every frame stands in the bucket; a connection's own line is written when it is made and while
 * TCP's handshake runs, and otherwise read only, to compare the whole key. So a frame costs two lines, and both can be
 * fetched for a whole burst at once. All of it is the agent's private memory: no peer writes here.
 */
#ifndef RWAY_STACK_CONNTRACK_H
#define RWAY_STACK_CONNTRACK_H

#include "stack.h"

enum {
    RWAY_CONNTRACK_WAYS = 8,      /* places of a bucket */
    RWAY_CONNTRACK_KEY_WORDS = 6, /* 64-bit words */
    RWAY_CONNTRACK_BURST = 32,    /* frames whose fetches overlap */
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
struct rway_conntrack_key {
    uint64_t words[RWAY_CONNTRACK_KEY_WORDS];
};

/* One place of a table. Guarded by the lock of its bucket. */
struct rway_connection {
    struct rway_conntrack_key key;
    uint32_t generation; /* of the rule table that let it in */
    uint32_t sequence;   /* TCP: the acknowledgement number that the next step of the handshake must carry */
    uint8_t opened_low;  /* the lower end opened it */
    uint8_t tcp_flags;   /* of the frame that opened it */
    uint8_t pad[6];
};

/* What a connection has been through. 0 is a free place. */
enum rway_conntrack_state {
    RWAY_CONNTRACK_OPENING = 1,     /* nothing came back, or nothing that counts */
    RWAY_CONNTRACK_ANSWERED = 2,    /* TCP: the SYN was acknowledged; the opener's acknowledgement is still to come */
    RWAY_CONNTRACK_ESTABLISHED = 3, /* both ends have shown that they hear each other */
    RWAY_CONNTRACK_PHASE = 3,       /* the bits of the three above */
    RWAY_CONNTRACK_OPENER_FIN = 4,  /* TCP, from here on */
    RWAY_CONNTRACK_OTHER_FIN = 8,
    RWAY_CONNTRACK_FINS = 12,
    RWAY_CONNTRACK_OPENER_RST = 16, /* it has sent one, and the other end has not gone on since */
    RWAY_CONNTRACK_OTHER_RST = 32,
    RWAY_CONNTRACK_RSTS = 48,
    RWAY_CONNTRACK_DENIED = 64 /* newer rules would not have let it in */
};

struct rway_conntrack_bucket {
    uint64_t tags[2];                        /* 16 bits for each place, 0 when it is free */
    uint32_t deadlines[RWAY_CONNTRACK_WAYS]; /* the last second in which the place is in use */
    uint8_t states[RWAY_CONNTRACK_WAYS];     /* enum rway_conntrack_state */
    uint32_t lock;
    uint32_t pad;
};

struct rway_conntrack {
    struct rway_conntrack_bucket *buckets;
    struct rway_connection *connections;    /* RWAY_CONNTRACK_WAYS for each bucket */
    struct rway_datagram_bucket *datagrams; /* RWAY_DATAGRAM_BUCKETS of them */
    uint32_t bucket_count;
    struct rway_conntrack_timeouts timeouts;
    uint64_t secret[2];
    size_t size; /* bytes of the mapping, which begins at buckets */
};

/* Where a key may stand. */
struct rway_conntrack_probe {
    uint32_t first; /* buckets; may be the same */
    uint32_t second;
    uint64_t tag; /* in each of four 16-bit lanes */
};

/* A bucket or two, locked; and the connection that was looked for, or that was made. */
struct rway_conntrack_hold {
    struct rway_conntrack_bucket *buckets[2]; /* NULL: not locked */
    struct rway_conntrack_bucket *bucket;     /* that the connection stands in */
    struct rway_connection *connection;       /* NULL: there is none */
    uint32_t way;
};

/* Room for connections of them, zeroed and present, with a secret of its own. NULL on refusal. */
struct rway_conntrack *rway_conntrack_new(uint32_t connections, const struct rway_conntrack_timeouts *timeouts,
                                          struct rway_error *error);
void rway_conntrack_free(struct rway_conntrack *conntrack);

/* Under the table's secret. */
uint64_t rway_conntrack_keyed_hash(const struct rway_conntrack *conntrack, const struct rway_conntrack_key *key);

static inline bool rway_conntrack_key_equal(const struct rway_conntrack_key *one,
                                            const struct rway_conntrack_key *other)
{
    uint64_t difference = 0;

    for (uint32_t word = 0; word < RWAY_CONNTRACK_KEY_WORDS; word++)
        difference |= one->words[word] ^ other->words[word];
    return difference == 0;
}

struct rway_conntrack_probe rway_conntrack_probe(const struct rway_conntrack *conntrack,
                                                 const struct rway_conntrack_key *key);

/* Fetch what a find will need; each of the three steps for a whole burst before the next one. */
void rway_conntrack_fetch_first(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe);
bool rway_conntrack_fetch_flow(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe);
void rway_conntrack_fetch_second(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe);

/*
 * Find the connection and lock what it stands in; an expired one is found too. When there is none, both buckets stay
 * locked, so that nobody else can make it meanwhile. Let go before the next find.
 */
void rway_conntrack_find(const struct rway_conntrack *conntrack, const struct rway_conntrack_probe *probe,
                         const struct rway_conntrack_key *key, struct rway_conntrack_hold *hold);
void rway_conntrack_let_go(struct rway_conntrack_hold *hold);

/* What became of the place that rway_conntrack_make gave. */
enum rway_conntrack_made {
    RWAY_CONNTRACK_NO_ROOM,
    RWAY_CONNTRACK_IN_FREE,
    RWAY_CONNTRACK_FOR_EXPIRED,
    RWAY_CONNTRACK_FOR_ANOTHER
};

/*
 * Take a place for the key that hold was looking for: its own if it was found; else a free or expired one; else that
 * of a connection which nothing is lost with. The caller fills in the rest of it.
 */
enum rway_conntrack_made rway_conntrack_make(const struct rway_conntrack *conntrack,
                                             const struct rway_conntrack_probe *probe,
                                             const struct rway_conntrack_key *key, uint32_t now,
                                             struct rway_conntrack_hold *hold);

/* Free what has expired in a bucket. Returns how many that were. */
uint32_t rway_conntrack_sweep(const struct rway_conntrack *conntrack, uint32_t bucket, uint32_t now);

/* RWAY_READERS_MAX of them, freed with free(); one; what it has counted, added to a sum. */
struct rway_conntrack_reader *rway_conntrack_readers_new(struct rway_conntrack *conntrack);
struct rway_conntrack_reader *rway_conntrack_reader_at(struct rway_conntrack_reader *readers, uint32_t reader);
void rway_conntrack_counts_add(const struct rway_conntrack_reader *reader, struct rway_conntrack_counts *sum);

/* Signed, so that also a wrapped clock compares. */
static inline bool rway_conntrack_expired(uint32_t deadline, uint32_t now)
{
    return (int32_t)(now - deadline) > 0;
}

/* ---- which connection a frame belongs to: conntrack_key.c ---- */

/* Fields of a key. */
static inline uint8_t rway_conntrack_protocol(const struct rway_conntrack_key *key)
{
    return (uint8_t)(key->words[5] >> 32);
}

/*
 * The VLANs that the frame is in, the outer one first: connections with the same addresses in two VLANs are two.
 * VLAN id 0 is a priority and no VLAN (IEEE 802.1Q).
 */
uint32_t rway_conntrack_vlan_ids(const struct rway_judged *frame);

/*
 * The key of a frame that came in by in_port and would leave by out_port. False when it is of no connection that can
 * be followed. from_low: it was sent by the lower end.
 */
bool rway_conntrack_key_of(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port,
                           struct rway_conntrack_key *key, bool *from_low);

/* The key of the packet that an ICMP or ICMPv6 error is about; false when the frame is no such error. */
bool rway_conntrack_key_of_error(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port,
                                 struct rway_conntrack_key *key);

/* What rules are asked about one direction of a connection. Returns the number of the port by which it comes in. */
uint32_t rway_conntrack_headers(const struct rway_conntrack_key *key, bool from_low, uint8_t tcp_flags,
                                struct rway_headers *headers);

/* May this frame of a protocol other than TCP open a connection? UDP, SCTP and echo requests do. */
bool rway_conntrack_opens(const struct rway_judged *frame);

/* ---- fragments: conntrack_datagram.c ---- */

/* After the verdict over the first fragment of a datagram: those behind it will follow it. */
void rway_datagram_note_first(const struct rway_conntrack *conntrack, const struct rway_judged *frame, uint32_t in_port,
                              uint32_t out_port, uint32_t now);

/* Does this fragment follow a first one that passed? */
bool rway_datagram_passes_later(const struct rway_conntrack *conntrack, const struct rway_judged *frame,
                                uint32_t in_port, uint32_t out_port, uint32_t now);

/* ---- what a connection has been through: conntrack_state.c ---- */

enum rway_conntrack_opening { RWAY_CONNTRACK_OPENS_NOTHING, RWAY_CONNTRACK_OPENS, RWAY_CONNTRACK_UNDER_WAY };

/* What a TCP frame of no known connection may begin: one that opens, or one of which the beginning was not seen. */
enum rway_conntrack_opening rway_conntrack_opens_tcp(uint8_t flags);

/*
 * Does any segment have these flags together (RFC 9293 3.10)? None is without SYN, RST and ACK, as those of NULL and
 * Xmas scans are, and none opens and closes at once. What receivers make of others differs.
 */
static inline bool rway_conntrack_is_segment(uint8_t tcp_flags)
{
    enum { FIN_BIT = 1, SYN_BIT = 2, RST_BIT = 4, ACK_BIT = 16 };

    if (tcp_flags & (SYN_BIT | RST_BIT))
        return (tcp_flags & (SYN_BIT | RST_BIT | FIN_BIT)) == (tcp_flags & SYN_BIT ? SYN_BIT : RST_BIT);
    return (tcp_flags & ACK_BIT) != 0;
}

/* The state of a connection that this frame has just opened; sequence is set. */
uint8_t rway_conntrack_begin(struct rway_connection *connection, const struct rway_judged *frame);

/* The state after one more frame, from the opener or the other end. */
uint8_t rway_conntrack_advance(struct rway_connection *connection, uint8_t state, const struct rway_judged *frame,
                               bool from_opener);

/* Is this frame a new attempt, to be judged by the rules, although the connection is known? */
bool rway_conntrack_begins_anew(const struct rway_connection *connection, uint8_t state,
                                const struct rway_judged *frame, bool from_opener);

/* Seconds that a connection in this state is remembered without a frame. */
uint32_t rway_conntrack_timeout(const struct rway_conntrack_timeouts *timeouts, uint8_t protocol, uint8_t state);

/* How readily a connection gives way to a new one: 0 not at all, the highest first. */
uint32_t rway_conntrack_yields(uint8_t state);

#endif
