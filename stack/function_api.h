/*
 * The public declarations of packets and packet functions. Read unchanged by C and by cffi; declarations only. A
 * function in C includes stack/function.h, which has these and the helpers beside them; docs/functions.md is the guide.
 */

enum {
    RWAY_PUSH_MAX = 64,       /* bytes of headers that functions may put in front */
    RWAY_PORTS_MAX = 64,      /* ports of a stack; their numbers are below it */
    RWAY_PORT_FLOOD = 0xffff, /* not one port: all but the one that the packet came in by */
    RWAY_ROOM_SIZE = 320      /* RWAY_PUSH_MAX + RWAY_HEADERS_MAX */
};

/* What is to become of a packet. */
enum rway_verdict {
    RWAY_VERDICT_NEXT = 0,    /* the next function decides; behind the last one, the stack's mode */
    RWAY_VERDICT_DROP = 1,    /* by packet.cause */
    RWAY_VERDICT_OUT = 2,     /* by packet.out_port, without a look by the functions behind */
    RWAY_VERDICT_UNPARSED = 3 /* not to be judged, see packet.malformed; drops if no function lets it pass */
};

/*
 * A packet: one frame on its way through a stack. A private copy of its headers, what they say, what is left to do to
 * it, and what is to become of it.
 *
 * The bytes judged are the bytes sent: functions see and change the private copy, and it is that copy that goes into
 * the out-slot; the rest, which no function has looked at, follows straight from the in-slot.
 *
 *      room:  ┌─ RWAY_PUSH_MAX ──┬─ at most RWAY_HEADERS_MAX ─┐     in-slot: ┌── skip ──┬── the rest ──┐
 *             └──── pushed ──► bytes ......... private_len ───┘              └──────────┴──────────────┘
 *
 * What leaves is the private bytes, then the rest: len = private_len + the in-frame's length - skip, always.
 */
struct rway_packet {
    const struct rway_frame *in; /* the stack's own: its bytes may still be changed by the peer */
    uint8_t *bytes;              /* the private bytes: from here the frame as it leaves */
    uint32_t private_len;        /* of them */
    uint32_t skip;               /* the stack's own: bytes at the start of the in-frame that they stand for */
    uint32_t len;                /* of the frame as it leaves */
    uint32_t hash;               /* rway_flow_hash, once asked for: rway_packet_hash */
    uint16_t in_port;
    uint16_t peer_port; /* where the stack's mode would have it leave; RWAY_PORT_FLOOD */
    uint16_t out_port;  /* RWAY_VERDICT_OUT */
    uint16_t vlan;      /* the tag (TCI) that stands beside the frame; 0 without one */
    uint8_t tagged;     /* there is one */
    uint8_t verdict;    /* enum rway_verdict */
    uint8_t cause;      /* enum rway_drop */
    uint8_t malformed;  /* enum rway_malformed; unless it is well-formed, nothing is parsed */
    uint8_t hashed;
    struct rway_offload offload; /* what is left to do to it, counted from bytes as they are now */
    struct rway_headers headers; /* offsets from bytes as they were when it came in */
    uint8_t room[RWAY_ROOM_SIZE];
};

/*
 * Room for len more bytes at offset at of the private ones, for the caller to fill; NULL when there is none. Offload
 * data moves along; headers do not.
 */
uint8_t *rway_packet_push(struct rway_packet *packet, uint32_t at, uint32_t len);

/* Take len bytes out at offset at, which all must be private. Returns 0, or -1 and nothing is changed. */
int rway_packet_pull(struct rway_packet *packet, uint32_t at, uint32_t len);

/* ---- functions ---- */

enum {
    RWAY_FUNCTION_VERSION = 1,
    RWAY_FUNCTIONS_MAX = 16, /* of a stack, the filter included */
    RWAY_FUNCTION_COUNTERS_MAX = 64,
    RWAY_FUNCTION_OPTIONS_MAX = 64
};

enum rway_function_flag {
    RWAY_FUNCTION_UNPARSED = 1 /* it decides over packets that cannot be judged, too: packet->malformed */
};

enum rway_option_type { RWAY_OPTION_NUMBER = 0, RWAY_OPTION_BOOLEAN = 1, RWAY_OPTION_TEXT = 2 };

/* A key that the function takes in the fabric file, and what it may be. */
struct rway_option {
    const char *name;
    uint32_t type; /* enum rway_option_type */
    int64_t least; /* of a number; of a text, bytes */
    int64_t most;
    int64_t usual; /* when the fabric file does not say; of a text there is none then: NULL */
};

union rway_option_value {
    int64_t number; /* of a boolean, 0 or 1 */
    const char *text;
};

/* What start is given. All of it, except for ports, is valid until stop. */
struct rway_function_start {
    const union rway_option_value *options; /* in the order of the entry's table */
    uint64_t *counters;                     /* likewise: add to them, they may not be 0; rway_counter_add */
    const char *const *ports;               /* names of the stack's ports, by number */
    uint32_t port_count;
    void *owner; /* of a built-in function: what its loops share */
};

/*
 * A packet function: a step of a stack. It gets a burst of packets, and changes, drops or directs them.
 *
 * Each loop has a state of its own, which start makes and stop frees; both are called while the loop does not run, and
 * everything else by the loop's thread. A function must not keep packets, nor read beyond packet->bytes +
 * packet->private_len: what follows is shared memory that a peer may change.
 */
struct rway_function {
    uint32_t version; /* RWAY_FUNCTION_VERSION */
    uint32_t flags;   /* enum rway_function_flag */
    const struct rway_option *options;
    uint32_t option_count;
    uint32_t counter_count;
    const char *const *counters; /* their names, of printable ASCII: `ringway show` has their sums over all loops */
    /* The state for one loop; NULL is a failure. A function without start has none: its state is NULL. */
    void *(*start)(const struct rway_function_start *start);
    void (*stop)(void *state);
    /* At the top of each turn of the loop; now_ns is a monotonic clock, read at the last timer tick. May be NULL. */
    void (*turn)(void *state, uint64_t now_ns);
    /* Before the loop sleeps or ends: hold nothing that others wait for. May be NULL. */
    void (*rest)(void *state);
    /* Decide over packets, in order: packets[i]->verdict is NEXT, or UNPARSED by the flag above. */
    void (*burst)(void *state, struct rway_packet *const *packets, uint32_t count);
};

/*
 * Add a function behind those that the stack has: rway_pipeline_new. options and counters are as many as its tables
 * have, and outlive the stack, as does the function; the counters belong to the loop's thread while that runs. Ports
 * are named by number, for start alone. 0, or -1: too many, no memory, or start has failed.
 */
struct rway_pipeline;
int rway_pipeline_add(struct rway_pipeline *pipeline, const struct rway_function *function,
                      const union rway_option_value *options, uint64_t *counters, const char *const *ports,
                      uint32_t port_count);
