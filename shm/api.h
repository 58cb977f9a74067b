/*
 * The public functions of shm/: regions, rings, bells. Read unchanged by C and by cffi; declarations only.
 *
 * Functions that can fail return a negative enum and fill a struct rway_error, if one is given, with what was found
 * and what was expected. Nothing here is thread-safe except where it says so; a producer, a consumer and a waiter
 * each belong to one thread at a time, and different ones may be used by different threads.
 */

/* Why a region was not created or not attached. */
enum rway_refusal {
    RWAY_OK = 0,
    RWAY_REFUSED_SYSTEM = 1,    /* a system call failed: sys_errno */
    RWAY_REFUSED_SIZE = 2,      /* the carrier is shorter than its header says */
    RWAY_REFUSED_MAGIC = 3,     /* not a region, or not finished */
    RWAY_REFUSED_VERSION = 4,   /* another major version */
    RWAY_REFUSED_FEATURE = 5,   /* a required feature that this release does not know */
    RWAY_REFUSED_GEOMETRY = 6,  /* out of range, or not what the broker offered */
    RWAY_REFUSED_LINK = 7,      /* another link's region */
    RWAY_REFUSED_SECTION = 8,   /* missing, twice, overlapping, out of bounds, or of wrong length or writer */
    RWAY_REFUSED_COUNTERS = 9,  /* counters that cannot be continued from */
    RWAY_REFUSED_ARGUMENT = 10, /* the caller's own mistake */
    RWAY_REFUSED_NO_HUGE = 11   /* huge pages were asked for and there are not enough */
};

/* Why a ring is no longer used. Each is the peer's doing, except VANISHED, which may be the host's. */
enum rway_break {
    RWAY_WHOLE = 0,
    RWAY_BROKEN_HEAD = 1,       /* the peer's head went back, or further than the ring is long */
    RWAY_BROKEN_TAIL = 2,       /* the peer's tail went back, or past our head */
    RWAY_BROKEN_KIND = 3,       /* unknown kind of descriptor, or a frame and a continuation in each other's place */
    RWAY_BROKEN_FLAGS = 4,      /* unknown descriptor flag */
    RWAY_BROKEN_LENGTH = 5,     /* frame length under RWAY_FRAME_MIN or over the link's frame_max */
    RWAY_BROKEN_SLOTS = 6,      /* slots of a frame do not follow from its length */
    RWAY_BROKEN_INCOMPLETE = 7, /* a frame of which not all slots were published */
    RWAY_BROKEN_PUSHED = 8,     /* more pushed bytes than there is headroom */
    RWAY_BROKEN_VANISHED = 9    /* the memory itself went away (SIGBUS, EFAULT) */
};

/* What went wrong; owned by the caller. */
struct rway_error {
    int32_t cause;     /* enum rway_refusal */
    int32_t sys_errno; /* errno of the failed call, or 0 */
    uint64_t found;
    uint64_t expected;
    char what[64]; /* the field, section or call concerned */
};

/* What follows from a geometry. Sizes in bytes. */
struct rway_shape {
    uint32_t slot_stride;
    uint32_t frame_max;
    uint64_t queue_size;      /* one ring: control, descriptors, slots */
    uint64_t rings_size;      /* one direction: all its rings */
    uint64_t rings_offset[2]; /* of the rings that side a, side b produces */
    uint64_t region_size;     /* from the header to the end of the last section, a multiple of 2 MiB */
    uint64_t memory;          /* what is allocated with ordinary pages; with huge pages region_size is */
};

/* Check a geometry and compute its shape. Returns 0 or -enum rway_refusal. */
int rway_geometry_shape(const struct rway_geometry *geometry, struct rway_shape *shape, struct rway_error *error);

enum rway_create_flag { RWAY_CREATE_HUGE = 1 /* 2 MiB pages, or fail with RWAY_REFUSED_NO_HUGE */ };

/*
 * Make a region: a memfd whose sections are allocated and zeroed, formatted, sealed against shrinking and growing.
 * Returns its descriptor, owned by the caller, or -enum rway_refusal. Only the broker calls this.
 */
int rway_region_create(const struct rway_geometry *geometry, uint64_t link_id, uint32_t flags,
                       struct rway_error *error);

/* The accounts of a ring's two halves before a region; they may be any numbers. */
struct rway_carried {
    struct rway_counts produced;
    struct rway_counts consumed;
    uint64_t originated; /* as in struct rway_ring_control */
    uint64_t replicated;
};

/*
 * The same for a region that replaces another one: its rings begin with the accounts given, those of the queues from a
 * to b, then those from b to a (2 × geometry.queues of them, the caller's). What was published and not released is gone
 * with the old region: it counts as taken out, and dropped as RWAY_DROP_RESTART, modulo 2 to the 64.
 */
int rway_region_create_from(const struct rway_geometry *geometry, uint64_t link_id, uint32_t flags,
                            const struct rway_carried *carried, struct rway_error *error);

/* One side's mapping of a region. */
struct rway_region;

/*
 * Map the region behind fd as side and check all of it against the broker's offer; what is checked here is not read
 * again. fd is not kept. Returns NULL on refusal. The side counts as attached from here on; whether somebody else is
 * attached as the same side is the broker's business.
 *
 * Rings are continued from the counters found in them, also when the end before was killed, at whatever instruction:
 * what it had published or released is so, what it had not is not, and its counts agree with that. What was lost with
 * it is counted under RWAY_DROP_RESTART.
 */
struct rway_region *rway_region_attach(int fd, const struct rway_geometry *offer, uint64_t link_id, uint32_t side,
                                       uint32_t incarnation, struct rway_error *error);

/*
 * Mark the side detached, unmap and free. No thread may use its producers, consumers or frames any more: a loop is
 * freed first. A thread that an application in Python has started in C of its own is waited for with Region.hold.
 */
void rway_region_detach(struct rway_region *region);

/*
 * In a forked child, before it starts a thread: unmap, close the copies of the bells, and free, without a word to
 * anybody. The parent goes on undisturbed.
 */
void rway_region_leave_to_parent(struct rway_region *region);

const struct rway_shape *rway_region_shape(const struct rway_region *region);
const struct rway_geometry *rway_region_geometry(const struct rway_region *region);

/* enum rway_break of this side: 0 while the region is whole. Any thread. */
int rway_region_broken(const struct rway_region *region);

/* What the other side says of itself (a copy; the peer's word, not checked). Any thread. */
void rway_region_peer(const struct rway_region *region, struct rway_side *peer);

/*
 * Publish in which queues this side wants its frames: bit q for queue q; what the link does not have is left out, and
 * none means any. The peer's steering (stack/api.h) follow, flow by flow, as frames are released. It is a wish:
 * frames come in the other queues too, and have to be taken out. All queues are wanted from attach on. Any thread.
 */
void rway_region_serve(struct rway_region *region, uint32_t queues);

/* The queues in which the peer wants frames, its word checked: at least one, and only what there is. Any thread. */
uint32_t rway_region_served(const struct rway_region *region);

enum { RWAY_BURST = 64 /* frames of a queue that a forwarder holds between release and publish, at most */ };

enum rway_losses {
    RWAY_LOSSES_UNKNOWN = 0,    /* nothing is known of a forwarder before */
    RWAY_LOSSES_COUNTED = 1,    /* *lost frames, 0 too, were lost when it was killed, and are counted now */
    RWAY_LOSSES_IMPLAUSIBLE = 2 /* *lost is no number that a kill can lose: nothing is counted */
};

/*
 * Before a forwarder starts: count what those before it held when they were killed, as RWAY_DROP_RESTART of queue 0 of
 * the first of regions that they sent to. Of a forwarder (rway_losses_watch) all regions have to be here, and nothing
 * may have been moved since they were attached: so call it with all of the VM's that nobody uses, before a thread does.
 * To be believed, it held RWAY_BURST frames at most of each queue that it took from, for each region that it sent
 * to. Returns enum rway_losses.
 */
int rway_losses_count(struct rway_region *const *regions, uint32_t count, uint64_t *lost);

/*
 * A forwarder starts that takes frames out of all queues of in and offers them to out, and nobody else does either;
 * a region may be in both. From here on each frame taken out and not dropped is owed: what rway_consumer_replicated and
 * rway_consumer_consumed do not say otherwise of is offered once. None of the halves may have frames peeked or claimed,
 * and what was lost before is counted (rway_losses_count).
 */
void rway_losses_watch(struct rway_region *const *in, uint32_t in_count, struct rway_region *const *out,
                       uint32_t out_count);

/*
 * The forwarder has ended in an orderly way and holds nothing, or somebody else takes the region over. For each region
 * of a forwarder; one of them is enough to make all of it unknown.
 */
void rway_losses_forget(struct rway_region *region);

/* The two halves of this side's queue: its ring to the peer and the peer's ring to it. Owned by the region. */
struct rway_producer;
struct rway_consumer;
struct rway_producer *rway_region_producer(struct rway_region *region, uint32_t queue);
struct rway_consumer *rway_region_consumer(struct rway_region *region, uint32_t queue);

/*
 * Give a half its bells: wait_fd, the read end of the pipe on which it sleeps, and ring_fd, the write end of the one
 * its peer sleeps on. Ownership passes to the region. Without bells (-1) sleeps end by their bound only. The peer's is
 * rung if the ring was used before: for a step that an end before this one was killed over, after it stored its counter
 * and before it rang.
 * The writing thread must block or ignore SIGPIPE, as CPython does.
 */
int rway_producer_bells(struct rway_producer *producer, int wait_fd, int ring_fd, struct rway_error *error);
int rway_consumer_bells(struct rway_consumer *consumer, int wait_fd, int ring_fd, struct rway_error *error);

/* A frame in a ring. The first piece starts at data; rway_producer_pieces and rway_consumer_pieces find the rest. */
struct rway_frame {
    uint8_t *data;   /* first byte, in shared memory: valid until publish or release */
    uint32_t len;    /* bytes of the whole frame */
    uint32_t index;  /* of its first slot */
    uint16_t slots;  /* it occupies */
    uint16_t pushed; /* bytes of it that lie in the headroom */
    uint16_t vlan;
    uint8_t flags; /* enum rway_desc_flag */
    uint32_t hash;
};

/* A contiguous part of a frame; the same shape as struct iovec. */
struct rway_piece {
    uint8_t *data;
    size_t len;
};

enum { RWAY_PIECES_MAX = 257 /* pieces of the longest frame at the smallest payload */ };

/*
 * Claim slots for count frames, in order. In: len, pushed, vlan, flags and hash of each frame. Out: data, index,
 * slots. Returns how many were claimed; fewer than count when the ring is full or the next frame's len or pushed is
 * not one that the link carries (rway_producer_fits tells which). Nothing is visible to the peer yet.
 */
uint32_t rway_ring_claim(struct rway_producer *producer, struct rway_frame *frames, uint32_t count);

/* Shorten the frame claimed last to len bytes and give back the slots it no longer needs; len 0 gives it back whole. */
void rway_ring_trim(struct rway_producer *producer, struct rway_frame *last, uint32_t len);

/*
 * Publish the claimed frames, all of them and in the order of their claims, by one store, and ring the consumer's bell
 * if it asked for that. What is claimed and not named here is given back.
 */
void rway_ring_publish(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count);

/*
 * The same for a loop that comes back at once: it leaves out the full fence between showing the frames and looking
 * for a sleeper, which costs more than all the rest when bursts follow each other. A peer that falls asleep at that
 * very moment may be overlooked, until the next publish_more with nothing to publish, publish, or settle: every turn
 * of a loop must do one of them when it has nothing to publish, before it sleeps or does something else.
 */
void rway_ring_publish_more(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count);

/* Look, after a full fence, for a consumer that publish_more may have overlooked. Costs nothing when there was none. */
void rway_producer_settle(struct rway_producer *producer);

/* Would a frame of this length fit the link at all? 0, or enum rway_drop + 1 naming why not. */
int rway_producer_fits(const struct rway_producer *producer, uint32_t len, uint32_t pushed);

/* enum rway_break of the region this ring is in. */
int rway_producer_broken(const struct rway_producer *producer);

/* A system call found the ring's memory gone (EFAULT): break the region, as the SIGBUS guard does. */
void rway_producer_vanished(struct rway_producer *producer);
void rway_consumer_vanished(struct rway_consumer *consumer);

/* Slots free to claim now. */
uint32_t rway_producer_room(struct rway_producer *producer);

/*
 * How many of frames that were peeked elsewhere, in order, this ring has room for now, each as a frame of its length
 * with nothing pushed. Frames that the link never carries need none, because they do not go in. All of them if the
 * ring is broken: there is nothing to wait for. The consumer's line is looked at only if what was seen of it last is
 * not enough.
 */
uint32_t rway_producer_fitting(struct rway_producer *producer, const struct rway_frame *frames, uint32_t count);

/* The consumer's counter, as it was seen last. */
uint64_t rway_producer_released(const struct rway_producer *producer);

/* How many consumers wait in a row, from this ring's on, as it says itself; at most RWAY_STALL_MAX. */
uint32_t rway_producer_stalled(const struct rway_producer *producer);

/* The counter value behind all that is claimed. Once the consumer's counter is there, it has dealt with all of it. */
uint64_t rway_producer_position(const struct rway_producer *producer);

/* Slots that len bytes take, pushed ones included. */
uint32_t rway_producer_slots(const struct rway_producer *producer, uint32_t len, uint32_t pushed);

/* Count frames that were meant for this ring and never entered it. Visible with the next publish, sleep or detach. */
void rway_producer_drop(struct rway_producer *producer, uint32_t cause, uint64_t frames);

/*
 * Take up to count frames that the peer has published. Every word of a descriptor is read once and checked; the bytes
 * of a frame stay where they are and a hostile peer can still change them. Returns how many; 0 also when the ring is
 * broken (rway_region_broken).
 */
uint32_t rway_ring_peek(struct rway_consumer *consumer, struct rway_frame *frames, uint32_t count);

/* Give all peeked frames' slots back to the producer, by one store, and ring its bell if it asked for that. */
void rway_ring_release(struct rway_consumer *consumer);

/*
 * Leave the last count frames that were peeked in the ring after all: they come again with the next peek. In the order
 * in which they were peeked.
 */
void rway_consumer_put_back(struct rway_consumer *consumer, const struct rway_frame *frames, uint32_t count);

/*
 * For whoever hands peeked frames on one by one before it releases them (each is written to a kernel interface, say):
 * call it before a frame is handed on. If this end is killed then, the next one hands none of them on again. All before
 * the last one begun count as delivered, that one as RWAY_DROP_RESTART; so a frame that was refused is dropped and
 * released before the next one is begun. Frames that are released before they are handed on need none of this.
 */
void rway_consumer_begin(struct rway_consumer *consumer, const struct rway_frame *frame);

/*
 * Tell the producer how many consumers wait in a row from this one on, RWAY_STALL_MAX at most: one more than the next
 * one says of itself (rway_producer_stalled). 0: this one does not wait, which each has to say itself when it goes on.
 */
void rway_consumer_stall(struct rway_consumer *consumer, uint32_t depth);

/* The same without the full fence, for a loop that comes back at once: see rway_ring_publish_more. */
void rway_ring_release_more(struct rway_consumer *consumer);
void rway_consumer_settle(struct rway_consumer *consumer);

/* Count frames that were taken out of this ring and went no further. Visible with the release of them. */
void rway_consumer_drop(struct rway_consumer *consumer, uint32_t cause, uint64_t frames);

/*
 * For a forwarder that is watched for losses, before the release of the frames: so many more are offered to other rings
 * than were taken out of this one (a frame that leaves by n ports: n - 1), or so many were neither dropped nor offered
 * to any. And before the publish: so many of what is offered to this ring were made here, and taken out of none.
 */
void rway_consumer_replicated(struct rway_consumer *consumer, uint64_t frames);
void rway_consumer_consumed(struct rway_consumer *consumer, uint64_t frames);
void rway_producer_originated(struct rway_producer *producer, uint64_t frames);

/* The frame's bytes, in order, as pieces. Returns how many there are, never more than RWAY_PIECES_MAX. */
uint32_t rway_producer_pieces(const struct rway_producer *producer, const struct rway_frame *frame,
                              struct rway_piece *pieces);
uint32_t rway_consumer_pieces(const struct rway_consumer *consumer, const struct rway_frame *frame,
                              struct rway_piece *pieces);

/* What an extension line says of checksum and segmentation; a private copy. Fields as in struct rway_extension. */
struct rway_offload {
    uint16_t flags; /* RWAY_EXT_CSUM, RWAY_EXT_GSO */
    uint16_t gso_type;
    uint16_t gso_size;
    uint16_t hdr_len;
    uint16_t csum_start;
    uint16_t csum_offset;
};

/*
 * What a frame may be cut into at most. UDP: what Linux sends and takes at once (UDP_MAX_SEGMENTS). TCP: what the
 * longest frame makes at the smallest segment size that Linux comes to (TCP_MIN_GSO_SIZE, 8 bytes).
 */
enum { RWAY_SEGMENTS_UDP_MAX = 128, RWAY_SEGMENTS_TCP_MAX = RWAY_FRAME_MAX / 8 };

/*
 * Does the offload data fit a frame of len bytes? 0, or -1. The number of segments is bounded as said above, not their
 * size. Pure. virtio 1.2, 5.1.6.2 and 5.1.6.4.
 */
int rway_offload_check(const struct rway_offload *offload, uint32_t len);

/* Read and check a peeked frame's offload data; all 0 when it has none. Returns 0, or -1 when it does not fit. */
int rway_frame_offload(const struct rway_consumer *consumer, const struct rway_frame *frame,
                       struct rway_offload *offload);

/*
 * Give a claimed frame offload data, before it is published; all 0 takes it away again. Returns 0, or -1 when it does
 * not fit the frame (then the frame has none).
 */
int rway_frame_set_offload(const struct rway_producer *producer, struct rway_frame *frame,
                           const struct rway_offload *offload);

/* Finish the checksum that offload asks for, in place; for frames of one's own making or private copies. RFC 1071. */
void rway_checksum_finish(uint8_t *frame, uint32_t len, const struct rway_offload *offload);

/*
 * A whole frame on its way into segments: the frames that a wire would have carried, with headers and checksums of
 * their own. For frames of one's own making or private copies, which must stay as they are meanwhile.
 */
struct rway_segmenter {
    const uint8_t *bytes; /* the whole frame; the caller's */
    uint32_t l3;          /* bytes from its start to the network header */
    uint32_t l4;          /* to the transport header */
    uint32_t payload;     /* to what is cut: each segment repeats all before */
    uint32_t end;         /* to the end of the packet */
    uint32_t at;          /* to the next segment's payload */
    uint32_t size;        /* bytes of payload per segment */
    uint32_t done;        /* segments so far */
    uint8_t ip4;          /* IPv4; otherwise IPv6 */
    uint8_t tcp;          /* TCP; otherwise UDP */
};

enum { RWAY_SEGMENT_HEADERS_MAX = 512 /* bytes that each segment may repeat; frames with longer ones are not cut */ };

/*
 * Begin to cut a frame of len bytes as offload says, which must have RWAY_EXT_GSO. Returns 0, or -1 for what cannot be
 * cut: the data does not fit the frame, its headers are not those of the type (Ethernet, VLAN tags, IPv4 with options
 * or IPv6 with hop-by-hop, routing and destination options, then the transport header at csum_start), it is a fragment
 * or a tunnel, or it is shorter than it says.
 */
int rway_segmenter_begin(struct rway_segmenter *segmenter, const uint8_t *bytes, uint32_t len,
                         const struct rway_offload *offload);

/* Bytes of the next segment's frame, at most RWAY_SEGMENT_HEADERS_MAX and gso_size; 0 when there is none any more. */
uint32_t rway_segmenter_next_len(const struct rway_segmenter *segmenter);

/* Write the next segment's frame to where there is room for it. Returns its length; 0 when there is none any more. */
uint32_t rway_segmenter_next(struct rway_segmenter *segmenter, uint8_t *to);

/*
 * Copy frames into a ring and publish them: count frames stand in bytes one after the other, lens are their lengths
 * and offloads, unless it is NULL, what is left to do to them (flags 0: nothing). Returns how many were dealt with:
 * published, or dropped and counted because no ring of this link carries such a length, or because offload data does
 * not fit its frame. Stops early when the ring is full or broken; then the caller decides to wait or to drop the rest.
 */
uint32_t rway_frames_copy_in(struct rway_producer *producer, const uint8_t *bytes, const uint32_t *lens,
                             uint32_t count);
uint32_t rway_frames_copy_in_whole(struct rway_producer *producer, const uint8_t *bytes, const uint32_t *lens,
                                   const struct rway_offload *offloads, uint32_t count);

/*
 * Copy up to count frames out of a ring, one after the other into bytes (of size bytes, at least the link's frame_max
 * and 4), as a wire would have carried them: cut into segments, checksums finished, VLAN tags put back. Their lengths
 * go into lens. Frames that do not fit stay in the ring; ones whose offload data is bad or cannot be carried out are
 * dropped and counted. Returns how many were copied, segments counted one by one.
 *
 * A frame is released and counted once, as it is taken from the ring. Segments of it that bytes or count had no room
 * for are the consumer's own: the next call gives them first, a waiter takes them for work, and a detach drops them.
 * Who takes frames from several queues asks rway_segments_wait before turning to the next one: the frame is released,
 * so the next of its flow may be in another queue by now.
 */
uint32_t rway_frames_copy_out(struct rway_consumer *consumer, uint8_t *bytes, size_t size, uint32_t *lens,
                              uint32_t count);
int rway_segments_wait(const struct rway_consumer *consumer);

/*
 * The same for forwarders: they stay whole, and what is left to do to each goes into offloads. Segments that
 * a call of rway_frames_copy_out has left come first, with nothing left to do.
 */
uint32_t rway_frames_copy_out_whole(struct rway_consumer *consumer, uint8_t *bytes, size_t size, uint32_t *lens,
                                    struct rway_offload *offloads, uint32_t count);

/* What a sleeper waits for. A waiter is reused: reset, add, wait. */
struct rway_waiter;
struct rway_waiter *rway_waiter_new(void);
void rway_waiter_free(struct rway_waiter *waiter);
void rway_waiter_reset(struct rway_waiter *waiter);
int rway_waiter_add_consumer(struct rway_waiter *waiter, struct rway_consumer *consumer);
int rway_waiter_add_producer(struct rway_waiter *waiter, struct rway_producer *producer, uint32_t slots);
int rway_waiter_add_fd(struct rway_waiter *waiter, int fd, short events);

/*
 * Sleep until a consumer has a frame, a producer the slots it needs, or an fd is ready; bound_us microseconds at the
 * longest, and while a ring is waited for never longer than 10 ms, growing to 80 ms over a second without work,
 * so that a lost bell costs milliseconds.
 * Looks again after arming and before sleeping. Returns 1 when there is work, 0 after the bound or a signal.
 */
int rway_waiter_wait(struct rway_waiter *waiter, uint64_t bound_us);

/*
 * Read a region through its descriptor with pread, without mapping it: for the broker and tools, which must not be
 * harmed by what happens to the memory. What the ends wrote is returned as found; only the header is checked.
 * Returns 0 or -enum rway_refusal.
 */
struct rway_snapshot {
    struct rway_header header;
    struct rway_side sides[2];
};
int rway_region_read(int fd, struct rway_snapshot *snapshot, struct rway_error *error);

/*
 * One ring as pread found it. On a live link the counters are not of one instant; on a quiet one they are exact. Counts
 * are those that belong to head and tail, also where an end was killed before it had stored them: as the next attach
 * will find them, but that it will not take frames that were begun for in flight.
 */
struct rway_ring_snapshot {
    uint64_t head; /* slots */
    uint64_t tail;
    uint64_t in_flight; /* frames, counted by walking the descriptors between tail and head */
    uint64_t begun;     /* how many of those the consumer has begun to hand on */
    struct rway_counts produced;
    struct rway_counts consumed;
    uint64_t originated; /* of the frames offered: made by the producer's own forwarder */
    uint64_t replicated; /* frames that the consumer's forwarder offered beyond those that it took out, less consumed */
};

/*
 * RWAY_REFUSED_COUNTERS when head and tail cannot be; the counts are filled in all the same, and nothing is in flight.
 * A descriptor that cannot be ends the walk.
 */
int rway_ring_read(int fd, const struct rway_snapshot *snapshot, uint32_t producing_side, uint32_t queue,
                   struct rway_ring_snapshot *ring, struct rway_error *error);

/* Version of the layout this library was compiled for: major << 16 | minor. */
uint32_t rway_layout_version(void);
