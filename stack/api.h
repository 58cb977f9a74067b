/*
 * The public functions of stack/: judge a frame's headers. Read unchanged by C and by cffi; declarations only.
 *
 * All of it works on private copies of bytes that a peer wrote; nothing here reads shared memory.
 */

enum {
    RWAY_HEADERS_MAX = 256, /* bytes of a frame's start that are judged: 2 tags, IPv4 and TCP with all options take 142;
                               2 tags, IPv6 and TCP leave 134 for extension headers */
    RWAY_RULES_MAX = 1024,
    RWAY_READERS_MAX = 64, /* loop threads of one filter */
    RWAY_CONNECTIONS_MIN = 1024,
    RWAY_CONNECTIONS_MAX = 16777216
};

/*
 * Why a frame's headers cannot be judged. Such a frame is dropped as RWAY_DROP_MALFORMED, or passed unjudged where the
 * user asked for that (rway_filter_table_pass_unparsed). Each is counted by its cause.
 */
enum rway_malformed {
    RWAY_WELL_FORMED = 0,
    RWAY_MALFORMED_ETHERNET = 1,       /* shorter than an Ethernet header */
    RWAY_MALFORMED_VLAN = 2,           /* a third tag, or a tag cut short */
    RWAY_MALFORMED_ARP = 3,            /* cut short, or address lengths that Ethernet and IPv4 do not have */
    RWAY_MALFORMED_IP_VERSION = 4,     /* not the version that the Ethernet type announced */
    RWAY_MALFORMED_IP_HEADER = 5,      /* cut short, or a header length that cannot be */
    RWAY_MALFORMED_IP_LENGTH = 6,      /* shorter than its header, or longer than the frame */
    RWAY_MALFORMED_IP_OPTIONS = 7,     /* an IPv4 option that leaves the header */
    RWAY_MALFORMED_SOURCE_ROUTE = 8,   /* another destination than the one judged: RFC 7126 4.3, RFC 5095 3 */
    RWAY_MALFORMED_JUMBOGRAM = 9,      /* RFC 2675: longer than any frame here */
    RWAY_MALFORMED_EXTENSION = 10,     /* IPv6 extension headers: cut short, out of place, or more than 8 */
    RWAY_MALFORMED_FRAGMENT = 11,      /* RFC 1858, RFC 3128; past 64 KiB; a fragment of a fragment */
    RWAY_MALFORMED_TINY_FRAGMENT = 12, /* a first fragment without all headers: RFC 1858, RFC 7112 */
    RWAY_MALFORMED_TRANSPORT = 13,     /* a TCP, UDP, SCTP, ICMP or ICMPv6 header cut short or of wrong length */
    RWAY_MALFORMED_TOO_LONG = 14,      /* headers that go on behind RWAY_HEADERS_MAX */
    RWAY_MALFORMED_CAUSES = 15
};

enum rway_headers_flag {
    RWAY_HEADERS_PORTS = 1,          /* source_port and destination_port are there; for TCP, tcp_flags too */
    RWAY_HEADERS_FIRST_FRAGMENT = 2, /* more fragments follow */
    RWAY_HEADERS_LATER_FRAGMENT = 4, /* the transport header is in another fragment */
    RWAY_HEADERS_ICMP = 8            /* icmp_type and icmp_code are there, of ICMP or ICMPv6 */
};

/* What the headers say. Offsets are bytes from the frame's start, never behind the bytes that were judged. */
struct rway_headers {
    uint16_t ether;          /* type behind the tags; 0: an 802.3 length frame */
    uint16_t l3_offset;      /* of what ether announces */
    uint16_t l4_offset;      /* IP: of what protocol announces, a later fragment's data included; else 0 */
    uint16_t l4_len;         /* bytes of the transport header; 0 when it is not one that is parsed */
    uint16_t payload_offset; /* l4_offset + l4_len */
    uint16_t source_port;
    uint16_t destination_port;
    uint8_t ip_version; /* 4, 6; 0: not IP */
    uint8_t protocol;   /* IP: behind all extension headers; in a later fragment what its fragment header says */
    uint8_t tcp_flags;
    uint8_t flags; /* enum rway_headers_flag */
    uint8_t vlan_count;
    uint8_t icmp_type;
    uint8_t source[16]; /* IPv4 in the first four, the others 0 */
    uint8_t destination[16];
    uint16_t vlan; /* id of the outermost tag that has one; 0: none, or priority tags only (IEEE 802.1Q 6.9) */
    uint8_t icmp_code;
    uint8_t pad;
};

/*
 * Judge a frame of frame_len bytes by its first copied ones: min(frame_len, RWAY_HEADERS_MAX) bytes in private memory.
 * Returns enum rway_malformed; out is all 0 unless RWAY_WELL_FORMED. Never reads behind copied. IPv4's header checksum
 * is not verified: it protects against noise, not against a peer, and the receiving stack verifies it.
 */
int rway_parse(const uint8_t *bytes, uint32_t copied, uint32_t frame_len, struct rway_headers *out);

/*
 * The flow hash of a parsed frame. Both directions of a flow have the same: TCP, UDP and SCTP hash by addresses, ports
 * and protocol, other IP by addresses and protocol, all fragments of a datagram, the first one too, by addresses alone,
 * anything else by its Ethernet type. VLAN tags do not count. A fixed function without a secret, so that all ends of a
 * chain agree; not to be used where an attacker must not choose who collides with whom. Pure.
 */
uint32_t rway_flow_hash(const struct rway_headers *headers);

/* 1 when offload data that rway_offload_check passed belongs to the packet that was judged, else 0. */
int rway_offload_fits(const struct rway_headers *headers, const struct rway_offload *offload);

enum rway_action { RWAY_DENY = 0, RWAY_ALLOW = 1 };

/* The fields of a rule that a packet must agree with; without any the rule matches every frame. */
enum rway_match {
    RWAY_MATCH_IN_PORT = 1,
    RWAY_MATCH_ETHER = 2,
    RWAY_MATCH_PROTOCOL = 4,
    RWAY_MATCH_SOURCE = 8,
    RWAY_MATCH_DESTINATION = 16,
    RWAY_MATCH_SOURCE_PORT = 32,
    RWAY_MATCH_DESTINATION_PORT = 64,
    RWAY_MATCH_TCP_FLAGS = 128,
    RWAY_MATCH_ICMP_TYPE = 256,
    RWAY_MATCH_ICMP_CODE = 512,
    RWAY_MATCH_VLAN = 1024,
    RWAY_MATCHES_KNOWN = 2047
};

/* A filter rule. Ports and TCP flags never match a later fragment: it does not say which it has. */
struct rway_rule {
    char name[64];    /* ends with a 0; counts are carried over to the rule of the same name */
    uint32_t action;  /* enum rway_action */
    uint32_t match;   /* enum rway_match */
    uint32_t in_port; /* number of the port by which the frame came in */
    uint16_t ether;
    uint8_t protocol;
    uint8_t ip_version; /* of source and destination: 4 or 6; 0 when neither is matched */
    uint8_t source[16]; /* IPv4 in the first four; bits behind the prefix are ignored */
    uint8_t destination[16];
    uint8_t source_bits;
    uint8_t destination_bits;
    uint8_t tcp_mask; /* the flags looked at */
    uint8_t tcp_value;
    uint16_t source_port_low;
    uint16_t source_port_high; /* included */
    uint16_t destination_port_low;
    uint16_t destination_port_high;
    uint16_t vlan; /* id, 0 to 4094; 0: no tag with an id */
    uint8_t icmp_type;
    uint8_t icmp_code;
};

/* Check a rule. Returns 0 or -RWAY_REFUSED_ARGUMENT, and the error names the field. */
int rway_rule_check(const struct rway_rule *rule, struct rway_error *error);

/* What a rule decided, or the default action. Writer: one reader; others may read at any time. */
struct rway_rule_counts {
    uint64_t frames;
    uint64_t bytes;
};

/*
 * Rules, first match wins, and the action for what none matches. Immutable once built, except for its counts: one array
 * of count + 1 per reader, the last for the default. NULL on refusal: a rule that fails its check, a name twice, too
 * many rules, no memory.
 */
struct rway_filter_table;
struct rway_filter_table *rway_filter_table_new(const struct rway_rule *rules, uint32_t count, uint32_t default_action,
                                                struct rway_error *error);
void rway_filter_table_free(struct rway_filter_table *table);

/* Before it is put in force: frames whose headers cannot be judged pass by this table. Otherwise they are dropped. */
void rway_filter_table_pass_unparsed(struct rway_filter_table *table);

/* Frames that could not be judged, by enum rway_malformed; index 0 stays 0. Writer: one reader; others may read. */
struct rway_unparsed_counts {
    uint64_t dropped[RWAY_MALFORMED_CAUSES];
    uint64_t passed[RWAY_MALFORMED_CAUSES];
};

/*
 * What becomes of a frame with headers that cannot be judged for that cause; counts it. Returns RWAY_PASSES or
 * RWAY_DROP_MALFORMED. A frame without a whole Ethernet header never passes.
 */
int rway_filter_judge_unparsed(const struct rway_filter_table *table, int cause, struct rway_unparsed_counts *counts);

/* Decide over a frame that came in by in_port, and count it. Returns enum rway_action. */
int rway_filter_judge(const struct rway_filter_table *table, const struct rway_headers *headers, uint32_t in_port,
                      struct rway_rule_counts *counts, uint32_t frame_len);

/*
 * The table in force, swapped while loop threads judge by it. Until the first replace everything is denied.
 * enter and leave belong to the reader's thread; the others may be called by any thread. Free it when no reader is in.
 */
struct rway_filter;
struct rway_filter *rway_filter_new(void);
void rway_filter_free(struct rway_filter *filter);

/* Give a loop thread its reader number, or -1 when all are taken; give it back. A new reader is away. */
int rway_filter_reader_add(struct rway_filter *filter);
void rway_filter_reader_remove(struct rway_filter *filter, uint32_t reader);

/*
 * At the top of each loop iteration: the reader holds no earlier table any more. Returns the table to judge by and the
 * reader's counts in it, both good until the reader's next enter, leave or remove.
 */
const struct rway_filter_table *rway_filter_enter(struct rway_filter *filter, uint32_t reader,
                                                  struct rway_rule_counts **counts);

/* The reader's own counts, for its thread; and the sum over all readers, for any thread. */
struct rway_unparsed_counts *rway_filter_unparsed(struct rway_filter *filter, uint32_t reader);
void rway_filter_unparsed_counts(const struct rway_filter *filter, struct rway_unparsed_counts *out);

/* Before sleeping: the reader holds no table and need not be waited for. */
void rway_filter_leave(struct rway_filter *filter, uint32_t reader);

/*
 * Put a table in force; it belongs to the filter from here on. Waits until no reader can hold the one before, a second
 * at most, and carries its counts over. Returns 0, or -1 when a reader did not come by: the new table is in
 * force for all who do, the old one stays until that reader has passed.
 */
int rway_filter_replace(struct rway_filter *filter, struct rway_filter_table *table);

/* Copy the counts of the table in force, the default last; up to max. Returns how many there are. */
uint32_t rway_filter_counts(struct rway_filter *filter, struct rway_rule_counts *out, uint32_t max);

/* ---- several queues ---- */

/*
 * Chooses among a link's queues for the frames of one sending thread: those of a flow go into one queue, of those that
 * the peer wants (rway_region_serve). When that changes, a flow changes its queue at a moment when the peer has
 * released all its frames, so that none is overtaken on this link. Belongs to one thread, as its producers do.
 */
struct rway_steering;

/* owned: the queues this thread produces into, bit q for queue q. NULL without memory, or when the link has none. */
struct rway_steering *rway_steering_new(struct rway_region *region, uint32_t owned);
void rway_steering_free(struct rway_steering *steering);

uint32_t rway_steering_owned(const struct rway_steering *steering);
struct rway_producer *rway_steering_producer(const struct rway_steering *steering, uint32_t queue);

/* At the start of each burst, when what was chosen before is claimed or given up: see what the peer wants now. */
void rway_steering_follow(struct rway_steering *steering);

/* The queue for the next frame with this hash. A queue's frames are to be claimed in the order they were chosen in. */
uint32_t rway_steering_choose(struct rway_steering *steering, uint32_t hash);

/*
 * Copy frames into the queues of their flows and publish them, with their hash: count frames stand in bytes one after
 * the other, lens are their lengths and offloads, unless it is NULL, what is left to do to them (flags 0: nothing).
 * Returns how many were dealt with: published, or dropped and counted because no ring of this link carries such a
 * length, or because offload data does not fit its frame. Stops early at a frame that has to wait; then *stopped_by is
 * the queue that is full.
 */
uint32_t rway_steering_copy_in(struct rway_steering *steering, const uint8_t *bytes, const uint32_t *lens,
                               const struct rway_offload *offloads, uint32_t count, uint32_t *stopped_by);

/* ---- connections ---- */

/* Seconds for which a connection is remembered after its last frame. */
struct rway_conntrack_timeouts {
    uint32_t tcp_opening;     /* before the handshake is complete */
    uint32_t tcp_established; /* RFC 5382 REQ-5: 2 h 4 min at least */
    uint32_t tcp_closing;     /* after a FIN from both ends, or a RST; RFC 5382 REQ-5: 4 min at least */
    uint32_t udp;             /* UDP and SCTP, not answered; RFC 4787 REQ-5: 2 min at least */
    uint32_t udp_answered;    /* RFC 4787 REQ-5: 5 min recommended */
    uint32_t icmp;            /* echo; RFC 5508 REQ-2: 60 s at least */
};

/* Bytes of private memory that remembering so many connections takes, and the places for them there are in it. */
uint64_t rway_conntrack_size(uint32_t connections);
uint32_t rway_conntrack_places(uint32_t connections);

/*
 * Have the filter remember connections, RWAY_CONNECTIONS_MIN to RWAY_CONNECTIONS_MAX of them; once, before the first
 * reader. All memory is taken now. Returns 0, or -RWAY_REFUSED_ARGUMENT or -RWAY_REFUSED_SYSTEM.
 */
int rway_filter_track(struct rway_filter *filter, uint32_t connections, const struct rway_conntrack_timeouts *timeouts,
                      struct rway_error *error);

/* A reader's access to the connections of its filter, for its own thread; NULL when the filter remembers none. */
struct rway_conntrack_reader;
struct rway_conntrack_reader *rway_filter_conntrack(struct rway_filter *filter, uint32_t reader);

/*
 * After each enter: judge by this table, count there; now_s is a clock of whole seconds that goes on while the machine
 * runs. Also frees the places of a few connections whose time is over.
 */
void rway_conntrack_turn(struct rway_conntrack_reader *reader, const struct rway_filter_table *table,
                         struct rway_rule_counts *counts, uint32_t now_s);

enum { RWAY_PASSES = -1 };

/* A frame to be decided over, well-formed by rway_parse. All of it is private memory of the caller. */
struct rway_judged {
    const uint8_t *bytes; /* as rway_parse was given them */
    const struct rway_headers *headers;
    uint32_t copied;
    uint32_t frame_len;
    uint16_t vlan;   /* the tag (TCI) that stands beside the frame; 0: none */
    int32_t stopped; /* out: RWAY_PASSES, RWAY_DROP_POLICY or RWAY_DROP_CONNECTIONS */
};

/*
 * Decide over frames, in order, that came in by in_port and would leave by out_port: those of a known connection pass,
 * in both directions; over others the rules decide, and a frame that they allow may make a connection known. Best in
 * bursts of 32, which share the time of their fetches from memory.
 */
void rway_conntrack_judge(struct rway_conntrack_reader *reader, uint32_t in_port, uint32_t out_port,
                          struct rway_judged *frames, uint32_t count);

/* What became of connections. Writer: one reader; others may read at any time. */
struct rway_conntrack_counts {
    uint64_t frames;    /* that passed because their connection is known, and no rule was asked */
    uint64_t bytes;     /* of those */
    uint64_t made;      /* connections */
    uint64_t gone;      /* expired or replaced; made - gone are in use, those included whose time is over */
    uint64_t replaced;  /* gave way to a new one before their time was over: unanswered, or closed */
    uint64_t refused;   /* frames dropped as RWAY_DROP_CONNECTIONS: no place, and none that gives way */
    uint64_t fragments; /* later fragments that passed because the first one of their datagram had */
    uint64_t fragment_bytes;
    uint64_t invalid; /* frames of known TCP connections dropped as RWAY_DROP_POLICY: flags that no segment has */
    uint64_t invalid_bytes;
};

/* The sum over all readers. All 0 when the filter remembers none. Any thread. */
void rway_filter_conntrack_counts(const struct rway_filter *filter, struct rway_conntrack_counts *out);

/* ---- stacks ---- */

/*
 * A stack as one loop runs it: functions in order (stack/function_api.h), and the ports that it sends by. It is a hook
 * of the loop (rway_loop_hook), and freed with it: add functions and ports first, then jobs. NULL without memory.
 */
struct rway_pipeline;
struct rway_pipeline *rway_pipeline_new(void);
struct rway_hook *rway_pipeline_hook(struct rway_pipeline *pipeline);

/*
 * Add the filter as the first function, as connection tracking where it remembers connections. It
 * outlives the pipeline. 0 or -1: all its readers are taken, or there is no memory.
 */
int rway_pipeline_filter(struct rway_pipeline *pipeline, struct rway_filter *filter);

/*
 * Send what leaves by that port into one queue, or into all queues that the steering owns, each flow into its own and
 * with its flow hash. The steering stays the caller's and outlives the pipeline. 0 or -1.
 */
int rway_pipeline_out(struct rway_pipeline *pipeline, uint32_t port, struct rway_producer *out);
int rway_pipeline_out_steered(struct rway_pipeline *pipeline, uint32_t port, struct rway_steering *steering);

/*
 * Mode "wire": what comes in by in, as in_port, leaves by out_port, past the functions. NULL without memory, or without
 * out_port in the pipeline. Frames that go no further are counted: at in when they are judged (offload, malformed,
 * policy, connections), at the out-queue when that does not take them (full, oversize, down).
 *
 * While a single out-queue is full, frames stay in in, until its consumer has not moved for patience_us microseconds,
 * and as many again for each of those who wait in a row from it on: from then on until it moves, those without room are
 * dropped. 0: they are dropped at once, as it has to be where several jobs share out: the first of them would take all
 * room.
 */
struct rway_job *rway_wire_new(struct rway_pipeline *pipeline, struct rway_consumer *in, uint32_t in_port,
                               uint32_t out_port, uint64_t patience_us);

/* Change patience_us of a job of rway_wire_new, which its loop need not be stopped for. Any thread. */
void rway_wire_wait(struct rway_job *job, uint64_t patience_us);

/*
 * Which address was last seen by which port; shared by all loops of a bridge. Each of its ports may have so many
 * addresses, which are forgotten when they were not seen for ageing_s seconds. What comes in by a port and goes out by
 * several is bounded to flood_rate frames a second. NULL without memory, or when addresses × ports is over 2^24.
 */
struct rway_bridge;
struct rway_bridge *rway_bridge_new(uint32_t addresses, uint32_t ports, uint32_t ageing_s, uint32_t flood_rate);
void rway_bridge_free(struct rway_bridge *bridge);

/* A port is gone: so are the addresses seen by it. Any thread. */
void rway_bridge_forget(struct rway_bridge *bridge, uint32_t port);

/* Frames, except for the addresses. */
struct rway_bridge_counts {
    uint64_t addresses;     /* known now, those included whose time is over and that nobody has missed */
    uint64_t learnt;        /* addresses, and so on up to aged */
    uint64_t moved;         /* seen by another port than before */
    uint64_t not_learnt;    /* no room: the port has as many as it may */
    uint64_t aged;          /* forgotten */
    uint64_t flooded;       /* to all other ports */
    uint64_t copies;        /* that flooding made, beyond one for each frame */
    uint64_t flood_limited; /* dropped as RWAY_DROP_POLICY: more than flood_rate */
    uint64_t same_port;     /* likewise: the destination is where it came from */
    uint64_t reserved;      /* likewise: for the next bridge alone, 01:80:c2:00:00:00 to 0f */
    uint64_t bad_source;    /* dropped as RWAY_DROP_MALFORMED: from a group's address */
};

/* Any thread. */
void rway_bridge_read(const struct rway_bridge *bridge, struct rway_bridge_counts *counts);

/*
 * Mode "bridge": one job for all in-queues of a loop; it sends by the ports that the pipeline has by now, and outlives
 * neither. A full ring drops. NULL without memory; add: 0 or -1.
 */
struct rway_job *rway_bridge_job_new(struct rway_pipeline *pipeline, struct rway_bridge *bridge);
int rway_bridge_job_add(struct rway_job *job, struct rway_consumer *in, uint32_t port);
