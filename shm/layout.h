/*
 * Layout 1: every byte that the two ends of a link share.
 *
 * This file is read unchanged by the C compiler (through ringway.h) and by cffi, so it holds declarations only: no
 * guards, no includes, no attributes, no pointers. ringway.h asserts the offsets.
 *
 *      0 ┌──────────────────────────────┐
 *        │ header, section table        │  written once, by the broker, before anybody maps the region
 *   4096 ├──────────────────────────────┤
 *        │ side a                       │  written by side a only
 *   8192 ├──────────────────────────────┤
 *        │ side b                       │  written by side b only
 *  2 MiB ├──────────────────────────────┤
 *        │ rings a→b: queue 0, 1, …     │  each queue: control, descriptors, slots
 *  n×2MiB├──────────────────────────────┤
 *        │ rings b→a: queue 0, 1, …     │
 *        └──────────────────────────────┘
 *
 * All words are little-endian and naturally aligned. Every offset is relative to the header, which need not be the
 * start of its carrier. Each shared word has one writer, named beside it; nobody reads back what it wrote. Bytes of
 * a region that no section covers belong to nobody: no end touches them.
 *
 * Who may write a slot of a ring (counters are free-running; an index is a counter modulo slot_count):
 *
 *      slots [tail, head)               belong to the consumer, which reads them and then stores tail
 *      slots [head, tail + slot_count)  belong to the producer, which fills them and then stores head
 */

enum {
    RWAY_MAGIC_LOW = 0x474e4952,  /* "RING" */
    RWAY_MAGIC_HIGH = 0x31594157, /* "WAY1" */
    RWAY_LAYOUT_MAJOR = 1,        /* another major: refuse */
    RWAY_LAYOUT_MINOR = 0,        /* a higher minor only uses bytes that were reserved before */
    RWAY_LINE = 64,               /* bytes of a cache line: no line has two writers */
    RWAY_HEADER_SIZE = 4096,      /* bytes of header and section table */
    RWAY_SIDE_SIZE = 4096,        /* bytes of a side section */
    RWAY_RINGS_ALIGN = 0x200000,  /* 2 MiB: a direction can have its own NUMA policy and huge pages */
    RWAY_SECTIONS_MAX = 32,
    RWAY_QUEUES_MAX = 16,
    RWAY_SLOTS_MIN = 64,
    RWAY_SLOTS_MAX = 32768,
    RWAY_SLOTS_DEFAULT = 1024,
    RWAY_PAYLOAD_MIN = 256,
    RWAY_PAYLOAD_MAX = 16384,
    RWAY_PAYLOAD_DEFAULT = 2048,
    RWAY_HEADROOM_MIN = 64,  /* the extension line alone */
    RWAY_HEADROOM_MAX = 512,
    RWAY_FRAME_MIN = 14,     /* an Ethernet header; shorter is no frame */
    RWAY_FRAME_MAX = 65664,  /* 64 KiB and 128 bytes of headers; a link's own limit may be lower */
    RWAY_DROPS = 10          /* drop causes a counter block has room for */
};

/* The two sides of a link; also the writer and reader of a section. */
enum rway_side_id { RWAY_SIDE_A = 0, RWAY_SIDE_B = 1, RWAY_SIDE_BROKER = 2, RWAY_SIDE_BOTH = 3 };

enum rway_section_kind {
    RWAY_SECTION_NONE = 0,
    RWAY_SECTION_SIDE = 1,  /* struct rway_side */
    RWAY_SECTION_RINGS = 2  /* one direction's rings, queue after queue */
};

/* Geometry: what the broker chooses for a link. Sizes in bytes. */
struct rway_geometry {
    uint32_t queues;       /* rings per direction, 1 to RWAY_QUEUES_MAX */
    uint32_t slot_count;   /* slots per ring, a power of two */
    uint32_t slot_payload; /* frame bytes per slot, a multiple of 64 */
    uint32_t headroom;     /* bytes before the payload, a multiple of 64: extension line, then pushed headers */
};

struct rway_section {
    uint32_t kind;   /* enum rway_section_kind; an unknown kind is skipped */
    uint32_t flags;  /* 0 */
    uint64_t offset; /* bytes from the header, a multiple of 4096 */
    uint64_t length; /* bytes */
    uint32_t writer; /* enum rway_side_id: for rings, the producing side */
    uint32_t reader;
};

/* Writer: the broker, at creation. Read once, at attach. */
struct rway_header {
    uint64_t magic; /* stored last */
    uint16_t major;
    uint16_t minor;
    uint32_t header_size;
    uint64_t region_size; /* bytes from the header to the end of the last section */
    uint64_t link_id;
    uint32_t features_required; /* an unknown bit: do not attach */
    uint32_t features_optional; /* an unknown bit: skip what it announces */
    uint32_t features_readable; /* an unknown bit: tools may read, ends may not attach */
    uint32_t section_count;
    struct rway_geometry geometry;
    uint32_t slot_stride; /* bytes from slot to slot, an odd number of lines */
    uint32_t frame_max;   /* bytes of the longest frame that this geometry carries */
    uint8_t reserved[56];
    struct rway_section sections[32]; /* RWAY_SECTIONS_MAX */
};

enum rway_side_state {
    RWAY_SIDE_DETACHED = 0,
    RWAY_SIDE_ATTACHED = 1,
    RWAY_SIDE_BROKEN = 2 /* attached, but a ring of it was found bad: see cause */
};

/* One loop's sign of life; a line each, because each queue may have a loop of its own. */
struct rway_progress {
    uint64_t loops; /* iterations so far */
    uint8_t pad[56];
};

/* Writer: that side. Readers: the other side, the broker, tools. */
struct rway_side {
    uint32_t state;         /* enum rway_side_state */
    uint32_t cause;         /* enum rway_break, when broken */
    uint32_t incarnation;   /* from the broker's offer */
    uint32_t queues_served; /* bit q: this side serves queue q */
    uint8_t pad[112];
    struct rway_progress progress[16]; /* RWAY_QUEUES_MAX */
    uint8_t reserved[2944];
};

/* Why a frame went no further. Producers count frames that never entered the ring, consumers frames they took out. */
enum rway_drop {
    RWAY_DROP_FULL = 0,      /* the ring had no room */
    RWAY_DROP_OVERSIZE = 1,  /* longer than the link's frame_max */
    RWAY_DROP_RUNT = 2,      /* shorter than RWAY_FRAME_MIN */
    RWAY_DROP_OFFLOAD = 3,   /* checksum or segmentation data that does not fit the frame */
    RWAY_DROP_POLICY = 4,    /* a filter rule or its default denied it */
    RWAY_DROP_MALFORMED = 5, /* headers that cannot be judged */
    RWAY_DROP_SINK = 6,      /* the port's sink, such as a kernel interface, refused it */
    RWAY_DROP_DOWN = 7,      /* the way out is not attached, or is broken */
    RWAY_DROP_RESTART = 8,   /* lost when an end restarted */
    RWAY_DROP_FLOWS = 9      /* no room to remember its connection */
};

/* One side's account of one ring. Writer: its producer or its consumer. */
struct rway_counts {
    uint64_t frames;     /* producer: published; consumer: released, dropped ones included */
    uint64_t bytes;      /* bytes of those frames */
    uint64_t bells;      /* bells rung */
    uint64_t sleeps;     /* times it slept */
    uint64_t bells_idle; /* bells received that brought no work */
    uint64_t mutes;      /* times it stopped listening to such bells */
    uint64_t drops[10];  /* RWAY_DROPS; by enum rway_drop */
};

struct rway_ring_control {
    uint64_t head; /* producer: slots published so far */
    uint8_t pad0[120];
    uint64_t tail; /* consumer: slots released so far */
    uint8_t pad1[120];
    uint64_t wake_consumer; /* consumer: ring my bell when head reaches this */
    uint8_t pad2[120];
    uint64_t wake_producer; /* producer: ring my bell when tail reaches this */
    uint8_t pad3[120];
    struct rway_counts produced; /* producer */
    struct rway_counts consumed; /* consumer */
    uint8_t reserved[256];
};

enum rway_desc_kind {
    RWAY_DESC_NONE = 0,
    RWAY_DESC_FRAME = 1,        /* first slot of a frame */
    RWAY_DESC_CONTINUATION = 2, /* a further slot of the frame before it */
    RWAY_DESC_MARK = 3          /* no frame: a message in the stream, one slot, no bytes */
};

enum rway_desc_flag {
    RWAY_FLAG_EXTENSION = 1,  /* the slot's extension line is filled */
    RWAY_FLAG_VLAN = 2,       /* vlan holds a tag that was taken off the frame */
    RWAY_FLAG_HASH = 4,       /* hash holds a flow hash */
    RWAY_FLAG_CSUM_VALID = 8, /* the producer has verified the checksum */
    RWAY_FLAGS_KNOWN = 15
};

/* Writer: the producer. A frame's descriptors and slots become visible by one store of head. */
struct rway_desc {
    uint8_t kind;    /* enum rway_desc_kind */
    uint8_t flags;   /* enum rway_desc_flag */
    uint16_t slots;  /* of the whole frame: what len and pushed need, no more; 0 in a continuation */
    uint32_t len;    /* bytes of the whole frame; 0 in a continuation */
    uint16_t vlan;   /* TCI, when flagged */
    uint16_t pushed; /* bytes of the frame that lie in the headroom */
    uint32_t hash;   /* flow hash when flagged; a mark's number */
};

enum rway_ext_flag {
    RWAY_EXT_CSUM = 1,     /* a checksum is to be finished: csum_start, csum_offset */
    RWAY_EXT_GSO = 2,      /* to be cut into segments: gso_type, gso_size, hdr_len; needs RWAY_EXT_CSUM */
    RWAY_EXT_TUNNEL = 4,   /* inner_l3, inner_l4 */
    RWAY_EXT_TIMESTAMP = 8 /* timestamp_ns, clock */
};

/* Segmentation types, numbered as in virtio 1.2, 5.1.6 (struct virtio_net_hdr); UFO (3) is not carried. */
enum rway_gso { RWAY_GSO_NONE = 0, RWAY_GSO_TCP4 = 1, RWAY_GSO_TCP6 = 4, RWAY_GSO_UDP = 5, RWAY_GSO_ECN = 0x80 };

/* The first line of a frame's first slot. Writer: the producer. Read once, and only when flagged. */
struct rway_extension {
    uint16_t flags;       /* enum rway_ext_flag */
    uint16_t gso_type;    /* enum rway_gso */
    uint16_t gso_size;    /* bytes of payload per segment */
    uint16_t hdr_len;     /* bytes of headers that each segment repeats */
    uint16_t csum_start;  /* bytes from the frame's start to where the checksum begins */
    uint16_t csum_offset; /* bytes from there to where it is stored */
    uint16_t inner_l3;    /* bytes from the frame's start */
    uint16_t inner_l4;
    uint64_t timestamp_ns;
    uint32_t clock; /* clockid_t of timestamp_ns */
    uint8_t reserved[36];
};
