/*
 * Layout 1: every byte that the two ends of a link share.
 *
 * shm/layout.h is read unchanged by the C compiler (through ringway.h) and by cffi, so it holds declarations only: no
 * guards, no includes, no attributes, no pointers. ringway.h asserts the offsets. docs/layout.md is made from it, and
 * tests/layout_v1.json holds what may no longer change (`./run layout`).
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
 * start of its carrier. Each shared word has one writer, named beside it; nobody reads back what it wrote, except for
 * once, at attach. Bytes of a region that no section covers belong to nobody: no end touches them. The same holds for
 * members called pad and reserved: they are 0 in a new region, and no end reads or writes them.
 */

/*
 * Ownership
 *
 * A line of 64 bytes has one writer, so that no two writers ever fight for one. Words that different sides
 * write in turn stand 128 bytes apart, because the adjacent-line prefetcher of x86 moves lines in pairs.
 *
 * Who may write a slot of a ring, and its descriptor (counters are free-running and 64 bits wide; an index is a counter
 * modulo slot_count):
 *
 *      slots [tail, head)               belong to the consumer, which reads them and then stores tail
 *      slots [head, tail + slot_count)  belong to the producer, which fills them and then stores head
 *
 * Head may lead tail by slot_count and no more: 0 ≤ head - tail ≤ slot_count, modulo 2 to the 64. The producer writes
 * head, wake_producer and its counts; the consumer writes tail, wake_consumer and its counts, although the ring lies in
 * the producer's section. A descriptor or slot is written by the producer only.
 */

/*
 * Memory order
 *
 * In the words of C11. Each word is loaded and stored whole, by a plain instruction; no instruction that reads and
 * writes at once touches a region. What the other side can write is loaded once, checked, and used from the copy.
 *
 *      word                           store                load
 *      magic                          release, last        any: nobody is handed the region before
 *      state of a side                release              acquire: cause, incarnation, queues_served were stored first
 *      at of a commit                 release              relaxed, at the writer's next attach
 *      group of a tally               release              relaxed, at the writer's next attach: its base was first
 *      head                           release              acquire: descriptors and slots before it are complete
 *      tail                           release              acquire: the consumer has done with the slots before it
 *      wake_consumer, wake_producer   relaxed, then fence  fence, then relaxed
 *      descriptor                     any, before head     after head, as two words of 64 bits, each once
 *      extension line, bytes          any, before head     after head; each word of the line once
 *      everything else                relaxed              relaxed
 *
 * A fence is a full one (seq_cst): see Sleeping. Counts are for people: frames and bytes are stored before the head or
 * tail that they belong to, the others behind it, or at a later publish, release or sleep, and at detach.
 */

/*
 * Restarts
 *
 * An end can be killed between any two of its stores. What it has stored by then is there, in the order in which it
 * stored it, because the kernel stops a thread between two instructions. So the order of stores says what the next
 * incarnation finds. Before a producer stores head it writes what its account will then be into the copy of published
 * that does not belong to the present head: at last of it, the new head. A consumer does so with released and tail.
 *
 *      producer                          consumer
 *      commit not in use: frames,        commit not in use: frames,
 *        bytes, dropped                    bytes, dropped
 *      at of that commit := new head     at of that commit := new tail
 *      frames, bytes                     frames, bytes
 *      head := new                       tail := new
 *      drops                             drops
 *
 * Whichever head is found, one commit has it as at, and that one's frames and bytes are right. Two can have it only
 * before the first step, where both stand at 0: then the first is right. If dropped is more than the drops that are
 * stored, the difference was not stored by cause in time, and is added to RWAY_DROP_RESTART. Frames and bytes of the
 * account are each those of one of the two commits, because they are stored between a commit and its head. Where no
 * commit has the head that is found, the region is damaged: the counts are taken as they are.
 *
 * A consumer that hands frames to somebody else one by one, before it can release them, stores begun first: the
 * position behind the frame that it is about to hand on. The next incarnation takes the frames between tail and begun
 * for handed on, if begun is neither 0 nor past head and a frame ends there. What became of the last of them nobody
 * knows: it is not handed on again, and counts as dropped, RWAY_DROP_RESTART.
 *
 * A forwarder releases its input before it publishes its output, so between the two frames are in no ring. Whenever it
 * is at rest, what it owes (all that it took out and did not drop, and replicated) less what it paid (all that it
 * offered, published or dropped, and had not originated) is the same, over all rings that it joins. Replicated is what
 * it offers beyond one frame for each taken out, less what it consumed, modulo 2 to the 64; originated is what it made.
 * Both go with a commit: that at index i belongs to commit i, and is stored before its at. When a forwarder begins,
 * each half's tally gets what it owes or has paid by then as base, and the number of its group. What the sum of a group
 * has grown by when all its members are found again was lost, and is counted as RWAY_DROP_RESTART of an output.
 *
 * In a new region all of this is 0, except for the commits of one that begins with the counts of a region before it.
 */

/*
 * A ring and its slots
 *
 * A direction's section holds its rings, queue after queue, queue_size bytes apart. Within a queue:
 *
 *      0                         struct rway_ring_control
 *      1536                      struct rway_desc, slot_count of them
 *      1536 + 16 × slot_count    slots, slot_count of them, slot_stride bytes apart
 *
 *      slot_stride = ((headroom + slot_payload) / 64 | 1) × 64
 *      queue_size  = 1536 + slot_count × (16 + slot_stride), rounded up to 4096
 *      rings_size  = queues × queue_size, the length of the section
 *      frame_max   = slot_count / 2 × slot_payload, but 65664 (RWAY_FRAME_MAX) at most
 *
 * The stride is an odd number of lines: with an even one the first bytes of all frames would crowd a few cache sets.
 * An end takes the offsets of sections from the table. The broker puts a→b at 2 MiB, b→a at the next multiple of 2 MiB
 * behind it, and makes region_size the next multiple behind that.
 *
 * Within a slot:
 *
 *      0                    struct rway_extension, in a frame's first slot and only when flagged
 *      headroom - pushed    first byte of a frame of which pushed bytes lie in the headroom
 *      headroom             slot_payload bytes
 *
 * Pushed is 0 to headroom - 64 (RWAY_HEADROOM_MIN), so that the extension line stays free, and never more than len.
 */

/*
 * A frame
 *
 * A frame of len bytes, 14 (RWAY_FRAME_MIN) to frame_max, occupies as many slots as its bytes need that do not lie in
 * the headroom, and never none:
 *
 *      slots = max(1, (len - pushed) / slot_payload, rounded up)
 *
 * These are consecutive indexes; behind slot_count - 1 comes 0. The first slot holds pushed + slot_payload bytes of
 * the frame, every further one slot_payload, the last what is left. The descriptor of the first slot says all about
 * the frame. The others' kind is RWAY_DESC_CONTINUATION; their other members are written as 0, and not looked at. All
 * slots of a frame become visible by the same store of head.
 *
 * A consumer that finds a head out of bounds, or a descriptor that is not as said here, takes nothing more from the
 * region and says why: it stores cause and then RWAY_SIDE_BROKEN. So does a producer that finds such a tail. Offload
 * data that does not fit its frame costs that frame only.
 */

/*
 * Sleeping
 *
 * A wake word holds the value of the other side's counter at which its writer wants to be woken. A bell is what wakes
 * it: a pipe between local members. It is handed out beside the region and has no byte in it. Each ring has two, one
 * for each of its sleepers.
 *
 *      sleeper                          ringer
 *      wake word := wanted              counter := new (release)
 *      full fence                       full fence
 *      counter reached? then no sleep   wake word in (old, new]? then write one byte
 *      sleep, bounded
 *
 * A ringer that goes on at once may put off its fence: it looks without one, and fences and looks at all steps since
 * the last such look as soon as it has nothing to publish or release.
 *
 * The comparison is of 64 bits without sign: wake - old - 1 < new - old. A value that was passed rings no second time,
 * so nobody takes it back, and the 0 of a new ring rings never. One of the two always sees the other; a sleep ends by
 * its bound all the same, because a peer need not ring. A bell may ring without need.
 */

/*
 * Waiting
 *
 * A consumer that sends frames on may leave them in its ring while its own way out is full. It then stores in stalled
 * how many consumers in a row wait: one more than its own next consumer says, RWAY_STALL_MAX at most. One that waits no
 * more stores 0, as each does at attach. A producer that finds its ring full waits the longer for a consumer the more
 * of them wait behind it, so that the one before a consumer that is dead or stopped gives up first and the others need
 * not. It takes a larger value for RWAY_STALL_MAX.
 */

/*
 * Attaching
 *
 * An end copies the header, checks the copy and does not read it again: magic, major, minor, no unknown bit in
 * features_required or features_readable, header_size; geometry and link_id equal to the broker's offer, slot_stride
 * and frame_max as they follow from the geometry, region_size within the carrier. Each section, of whatever kind, must
 * begin at a multiple of 4096 behind the header, end within region_size and overlap no other. Four must be there, each
 * once and with flags 0: a RWAY_SECTION_SIDE for either writer, with RWAY_SIDE_BOTH as reader and 4096 bytes; a
 * RWAY_SECTION_RINGS for either writer, with the other side as reader and rings_size bytes. Other kinds are skipped.
 *
 * It then continues from the head, tail and counts that it finds in its rings, as Restarts says, unless a head and tail
 * contradict each other. In its own side it stores incarnation, cause and queues_served, and RWAY_SIDE_ATTACHED last.
 * It may store queues_served again at any time, and must take frames out of all queues whatever it says.
 */

/*
 * Versions
 *
 * Until the first release there is one layout, and all of it may change: both ends, the broker and the tools are of one
 * build. From then on nothing that has a name here moves, changes its size or its value while major is 1, except for
 * RWAY_LAYOUT_MINOR, RWAY_FLAGS_KNOWN and what is called pad or reserved.
 */

/* Numbers of the layout. Sizes in bytes. */
enum {
    RWAY_MAGIC_LOW = 0x474e4952,  /* "RING": the low half of magic */
    RWAY_MAGIC_HIGH = 0x31594157, /* "WAY1": the high half */
    RWAY_LAYOUT_MAJOR = 1,        /* another major: refuse */
    RWAY_LAYOUT_MINOR = 0,        /* another minor: refuse, until there is a release */
    RWAY_LINE = 64,               /* bytes of a cache line: no line has two writers */
    RWAY_HEADER_SIZE = 4096,      /* bytes of header and section table */
    RWAY_SIDE_SIZE = 4096,        /* bytes of a side section */
    RWAY_RINGS_ALIGN = 0x200000,  /* 2 MiB: a direction can have its own NUMA policy and huge pages */
    RWAY_SECTIONS_MAX = 32,       /* entries of the section table */
    RWAY_QUEUES_MAX = 16,         /* rings per direction */
    RWAY_SLOTS_MIN = 64,          /* slots per ring, a power of two */
    RWAY_SLOTS_MAX = 32768,
    RWAY_SLOTS_DEFAULT = 1024, /* where nothing is asked for */
    RWAY_PAYLOAD_MIN = 256,    /* frame bytes per slot, a multiple of 64 */
    RWAY_PAYLOAD_MAX = 16384,
    RWAY_PAYLOAD_DEFAULT = 2048, /* where nothing is asked for */
    RWAY_HEADROOM_MIN = 64,      /* the extension line alone */
    RWAY_HEADROOM_MAX = 512,
    RWAY_FRAME_MIN = 14,    /* an Ethernet header; shorter is no frame */
    RWAY_FRAME_MAX = 65664, /* 64 KiB and 128 bytes of headers; a link's own limit may be lower */
    RWAY_STALL_MAX = 7,     /* waiting consumers in a row that are told apart */
    RWAY_DROPS = 32         /* drop causes a counter block has room for */
};

/* The two sides of a link; also the writer and reader of a section. */
enum rway_side_id { RWAY_SIDE_A = 0, RWAY_SIDE_B = 1, RWAY_SIDE_BROKER = 2, RWAY_SIDE_BOTH = 3 };

/* What a section holds. A kind that an end does not know is skipped. */
enum rway_section_kind {
    RWAY_SECTION_NONE = 0,
    RWAY_SECTION_SIDE = 1, /* struct rway_side */
    RWAY_SECTION_RINGS = 2 /* one direction's rings, queue after queue */
};

/* Geometry: what the broker chooses for a link. Sizes in bytes. */
struct rway_geometry {
    uint32_t queues;       /* rings per direction, 1 to RWAY_QUEUES_MAX */
    uint32_t slot_count;   /* slots per ring, a power of two */
    uint32_t slot_payload; /* frame bytes per slot, a multiple of 64 */
    uint32_t headroom;     /* bytes before the payload, a multiple of 64: extension line, then pushed headers */
};

/* An entry of the section table. Writer: the broker, at creation. */
struct rway_section {
    uint32_t kind;   /* enum rway_section_kind; an unknown kind is skipped */
    uint32_t flags;  /* 0 */
    uint64_t offset; /* bytes from the header, a multiple of 4096 */
    uint64_t length; /* bytes */
    uint32_t writer; /* enum rway_side_id: for rings, the producing side */
    uint32_t reader; /* enum rway_side_id: for rings, the other side */
};

/* Writer: the broker, at creation. Read once, at attach. */
struct rway_header {
    uint64_t magic;             /* RWAY_MAGIC_HIGH, RWAY_MAGIC_LOW; stored last */
    uint16_t major;             /* RWAY_LAYOUT_MAJOR */
    uint16_t minor;             /* RWAY_LAYOUT_MINOR */
    uint32_t header_size;       /* RWAY_HEADER_SIZE */
    uint64_t region_size;       /* bytes from the header to where no section goes beyond, a multiple of 2 MiB */
    uint64_t link_id;           /* the broker's number for the link */
    uint32_t features_required; /* an unknown bit: do not attach */
    uint32_t features_optional; /* an unknown bit: skip what it announces */
    uint32_t features_readable; /* an unknown bit: tools may read, ends may not attach */
    uint32_t section_count;     /* entries of sections in use */
    struct rway_geometry geometry;
    uint32_t slot_stride; /* bytes from slot to slot, an odd number of lines */
    uint32_t frame_max;   /* bytes of the longest frame that this geometry carries */
    uint8_t reserved[56];
    struct rway_section sections[32]; /* RWAY_SECTIONS_MAX */
};

/* What a side says of itself. */
enum rway_side_state {
    RWAY_SIDE_DETACHED = 0,
    RWAY_SIDE_ATTACHED = 1,
    RWAY_SIDE_BROKEN = 2 /* attached, but a ring of it was found bad: see cause */
};

/* Where a half of a link stood when a forwarder began to use it. Read by its writer's next incarnation only. */
struct rway_tally {
    uint64_t group;   /* number of the halves that the forwarder joins; 0: none; stored last */
    uint64_t members; /* how many those are */
    uint64_t base;    /* frames */
};

/* Writer: that side. Readers: the other side, the broker, tools. */
struct rway_side {
    uint32_t state;          /* enum rway_side_state */
    uint32_t cause;          /* enum rway_break, when broken */
    uint32_t incarnation;    /* from the broker's offer */
    uint32_t queues_served;  /* bit q: this side wants frames in queue q; 0: in any */
    struct rway_tally taken; /* of its consumers: frames that it owes to other links */
    struct rway_tally given; /* of its producers: frames that it had from other links */
    uint8_t reserved[4032];
};

/* Why a frame went no further. Producers count frames that never entered the ring, consumers frames they took out. */
enum rway_drop {
    RWAY_DROP_FULL = 0,       /* the ring had no room */
    RWAY_DROP_OVERSIZE = 1,   /* longer than the link's frame_max */
    RWAY_DROP_RUNT = 2,       /* shorter than RWAY_FRAME_MIN */
    RWAY_DROP_OFFLOAD = 3,    /* checksum or segmentation data that does not fit the frame */
    RWAY_DROP_POLICY = 4,     /* a filter rule or its default denied it */
    RWAY_DROP_MALFORMED = 5,  /* headers that cannot be judged */
    RWAY_DROP_SINK = 6,       /* the port's sink, such as a kernel interface, refused it */
    RWAY_DROP_DOWN = 7,       /* the way out is not attached, or is broken */
    RWAY_DROP_RESTART = 8,    /* lost when an end restarted */
    RWAY_DROP_CONNECTIONS = 9 /* no room to remember its connection */
};

/* One side's account of one ring. Writer: its producer or its consumer. */
struct rway_counts {
    uint64_t frames;     /* producer: published; consumer: released, dropped ones included */
    uint64_t bytes;      /* of those frames */
    uint64_t bells;      /* bells rung */
    uint64_t sleeps;     /* times it slept */
    uint64_t bells_idle; /* bells received that brought no work */
    uint64_t mutes;      /* times it stopped listening to such bells */
    uint64_t drops[32];  /* RWAY_DROPS; by enum rway_drop */
    uint8_t pad[16];
};

/* What an account was when a counter was where at says. Writer: the producer or consumer whose counter it is. */
struct rway_commit {
    uint64_t at;     /* head or tail; stored last */
    uint64_t frames; /* as in struct rway_counts */
    uint64_t bytes;
    uint64_t dropped; /* frames, by whatever cause */
};

/* The start of a queue. Writers: the producer and the consumer, as named; no line has two of them. */
struct rway_ring_control {
    uint64_t head; /* producer: slots published so far */
    uint8_t pad0[120];
    uint64_t tail; /* consumer: slots released so far */
    uint8_t pad1[120];
    uint64_t wake_consumer; /* consumer: ring my bell when head reaches this */
    uint8_t pad2[120];
    uint64_t wake_producer; /* producer: ring my bell when tail reaches this */
    uint8_t pad3[120];
    struct rway_counts produced; /* producer: its account */
    uint8_t pad4[64];
    struct rway_counts consumed; /* consumer: its account */
    uint8_t pad5[64];
    struct rway_commit published[2]; /* producer: its account at this head and the one before */
    uint64_t originated[2];          /* producer: frames so far that no link owed, at each of the two */
    uint8_t pad6[48];
    struct rway_commit released[2]; /* consumer: its account at this tail and the one before */
    uint64_t begun;                 /* consumer: position behind the frame that it began to hand on last; 0: none */
    uint64_t stalled; /* consumer: how many wait in a row from this one on, RWAY_STALL_MAX at most; 0: it does not */
    uint64_t replicated[2]; /* consumer: frames so far owed beyond those taken out, at each of the two */
    uint8_t reserved[32];
};

/* What a slot holds. A kind that is not listed here breaks the ring. */
enum rway_desc_kind {
    RWAY_DESC_NONE = 0,        /* nothing yet: never published */
    RWAY_DESC_FRAME = 1,       /* first slot of a frame */
    RWAY_DESC_CONTINUATION = 2 /* a further slot of the frame before it */
};

/* A bit that is not listed here breaks the ring. */
enum rway_desc_flag {
    RWAY_FLAG_EXTENSION = 1,  /* the slot's extension line is filled */
    RWAY_FLAG_VLAN = 2,       /* vlan holds a tag that was taken off the frame */
    RWAY_FLAG_HASH = 4,       /* hash holds a flow hash */
    RWAY_FLAG_CSUM_VALID = 8, /* the producer has verified the checksum */
    RWAY_FLAGS_KNOWN = 15     /* all of them */
};

/* Writer: the producer. A frame's descriptors and slots become visible by one store of head. */
struct rway_desc {
    uint8_t kind;    /* enum rway_desc_kind */
    uint8_t flags;   /* enum rway_desc_flag */
    uint16_t slots;  /* of the whole frame: what len and pushed need, no more; 0 in a continuation */
    uint32_t len;    /* bytes of the whole frame; 0 in a continuation */
    uint16_t vlan;   /* TCI, when flagged */
    uint16_t pushed; /* bytes of the frame that lie in the headroom */
    uint32_t hash;   /* flow hash when flagged */
};

/* Which members of an extension line are filled. Unknown bits are left out of account. */
enum rway_ext_flag {
    RWAY_EXT_CSUM = 1, /* a checksum is to be finished: csum_start, csum_offset */
    RWAY_EXT_GSO = 2   /* to be cut into segments: gso_type, gso_size, hdr_len; needs RWAY_EXT_CSUM */
};

/* Segmentation types, numbered as in virtio 1.2, 5.1.6 (struct virtio_net_hdr); UFO (3) is not carried. */
enum rway_gso {
    RWAY_GSO_NONE = 0,
    RWAY_GSO_TCP4 = 1,  /* TCP over IPv4 */
    RWAY_GSO_TCP6 = 4,  /* TCP over IPv6 */
    RWAY_GSO_UDP = 5,   /* UDP datagrams of gso_size bytes each */
    RWAY_GSO_ECN = 0x80 /* beside TCP: it has ECN set */
};

/* The first line of a frame's first slot. Writer: the producer. Read once, and only when flagged. */
struct rway_extension {
    uint16_t flags;       /* enum rway_ext_flag */
    uint16_t gso_type;    /* enum rway_gso */
    uint16_t gso_size;    /* bytes of payload per segment */
    uint16_t hdr_len;     /* bytes of headers that each segment repeats */
    uint16_t csum_start;  /* bytes from the frame's start to where the checksum begins */
    uint16_t csum_offset; /* bytes from there to where it is stored */
    uint8_t reserved[52];
};
