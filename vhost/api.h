/*
 * The public functions of vhost/: a guest's memory, and the job that moves frames between one of its queue pairs and a
 * link's queue. Read unchanged by C and by cffi; declarations only. What a guest or its front end says is checked here,
 * whoever calls.
 */

/* A guest's memory as its front end has described it; the mappings are ours. */
struct rway_guest;

enum { RWAY_GUEST_REGIONS_MAX = 64 };

/* What a front end says of one region. Sizes in bytes. */
struct rway_guest_region {
    uint64_t guest; /* address in the guest */
    uint64_t size;
    uint64_t user;   /* address in the front end's own process */
    uint64_t offset; /* of the region in the descriptor's file */
};

/* No memory yet. NULL without memory of our own. */
struct rway_guest *rway_guest_new(void);

/* Unmap all and free. No job uses it any more. */
void rway_guest_free(struct rway_guest *guest);

/* In a forked child: the same, where no other thread runs. */
void rway_guest_leave_to_parent(struct rway_guest *guest);

/*
 * Map a region of a file in memory (memfd, shm, hugetlbfs). fd stays the caller's and is not needed afterwards. With
 * sealed other than 0 a file that could be shortened is refused; otherwise the SIGBUS guard watches over it. Returns 0,
 * or -enum rway_refusal for what no region can be: empty, past the end of the file, wrapping, overlapping another one.
 * The same region of the same file is added once.
 */
int rway_guest_add(struct rway_guest *guest, int fd, const struct rway_guest_region *region, int sealed,
                   struct rway_error *error);

/* Unmap the region with this guest address, size and user address, if there is one. All jobs are paused. */
void rway_guest_remove(struct rway_guest *guest, const struct rway_guest_region *region);

/* Regions mapped. */
uint32_t rway_guest_count(const struct rway_guest *guest);

/* Was memory taken away that is mapped? Then none of it is to be used any more. Any thread. */
int rway_guest_vanished(const struct rway_guest *guest);

/* The two rings of a queue pair, seen from the guest: virtio 1.2, 5.1.2. */
enum rway_vring_id { RWAY_VRING_RECEIVE = 0, RWAY_VRING_TRANSMIT = 1 };

enum {
    RWAY_VRING_SIZE_MAX = 32768, /* entries: virtio 1.2, 2.7 and 2.8 */
    RWAY_CHAIN_MAX = 1024        /* pieces of memory of a chain, and of all buffers that one frame may take */
};

/* Why a ring is not used any more; each is the guest's doing, or its front end's. */
enum rway_vring_break {
    RWAY_VRING_WHOLE = 0,
    RWAY_VRING_AVAIL = 1,    /* split: more made available than the ring holds, or the index went back */
    RWAY_VRING_HEAD = 2,     /* split: an entry of the available ring names no descriptor */
    RWAY_VRING_NEXT = 3,     /* a chain goes on outside its table */
    RWAY_VRING_CHAIN = 4,    /* a chain is longer than the ring, or goes round in a circle */
    RWAY_VRING_INDIRECT = 5, /* an indirect table that is empty, cut, nested, outside the memory, or not negotiated */
    RWAY_VRING_WRAP = 6,     /* packed: a chain goes on in a descriptor that is not available */
    RWAY_VRING_VANISHED = 7  /* the memory itself went away */
};

/* A ring as its front end has set it up. Addresses are user addresses, as in VHOST_USER_SET_VRING_ADDR. */
struct rway_vring_setup {
    uint64_t desc;
    uint64_t avail;    /* packed: driver event suppression */
    uint64_t used;     /* packed: device event suppression */
    uint64_t features; /* as negotiated: VIRTIO_F_…, VIRTIO_NET_F_… */
    uint32_t size;     /* entries */
    uint32_t base;     /* as in VHOST_USER_SET_VRING_BASE */
};

/*
 * A job for a queue pair. Producer and consumer are the two halves of one queue of a link, the caller's, and outlive
 * the job; frame_max is the link's longest frame. NULL without memory or descriptors. Until its rings are started
 * frames wait in the link.
 */
struct rway_job *rway_pair_new(struct rway_producer *producer, struct rway_consumer *consumer, uint32_t frame_max);

/*
 * Keep the job from touching guest and rings until it is resumed. Returns when it does not any more: at the end of a
 * turn under way. All below but rway_pair_read needs that, and is for one thread at a time; the loop may be running.
 */
void rway_pair_pause(struct rway_job *job);
void rway_pair_resume(struct rway_job *job);

/* Do the rings that are started lie in this memory? */
int rway_pair_fits(const struct rway_job *job, const struct rway_guest *guest);

/*
 * The memory from now on: the caller's, at least until another is set; NULL: none. Rings that are started are looked up
 * in it again. Returns 0, or -1 when one does not lie in it: then nothing is changed.
 */
int rway_pair_set_guest(struct rway_job *job, struct rway_guest *guest);

/*
 * Start a ring. Returns 0, or -enum rway_refusal: size, alignment, not in the memory as a whole, areas that overlap.
 * It has no descriptors and is disabled until it is given them.
 */
int rway_pair_start(struct rway_job *job, uint32_t ring, const struct rway_vring_setup *setup,
                    struct rway_error *error);

/* Stop a ring, or find it stopped. Returns its position, as VHOST_USER_GET_VRING_BASE has it. */
uint32_t rway_pair_stop(struct rway_job *job, uint32_t ring);

/*
 * Eventfds of a started ring; -1: none. Without kick it is polled, without call nobody is notified. They stay the
 * caller's and are open while the ring has them. Returns 0, or -1 with errno.
 */
int rway_pair_set_kick(struct rway_job *job, uint32_t ring, int kick_fd);
void rway_pair_set_call(struct rway_job *job, uint32_t ring, int call_fd);

/* A disabled ring gives no frames to the guest, and discards those that come from it. */
void rway_pair_enable(struct rway_job *job, uint32_t ring, int enabled);

/*
 * The link's queues whose frames go to this pair's receive ring: count consumers, at most RWAY_QUEUES_MAX; at first its
 * own alone. A pair that the guest does not use leaves its consumer to one that it does, with all jobs of the link
 * paused: each consumer is one job's at a time. The consumers are the caller's, and outlive the job.
 */
void rway_pair_set_sources(struct rway_job *job, struct rway_consumer *const *consumers, uint32_t count);

/* With drop other than 0, frames of the guest that find no room in the link are dropped, not left to wait. */
void rway_pair_set_full(struct rway_job *job, int drop);

/* Does a ring that is started lie in this region? For a look before it goes. */
int rway_pair_uses(const struct rway_job *job, const struct rway_guest_region *region);

struct rway_pair_state {
    int broken[2];        /* enum rway_vring_break, of each ring */
    uint64_t moved[2];    /* frames and segments that went through each ring, dropped ones included */
    uint64_t notified[2]; /* times that the guest wanted to be notified */
    uint64_t returned;    /* receive buffers that could hold nothing, given back empty */
    uint64_t unfit;       /* segments of frames that were cut here which no buffer could hold */
};

/* Readable once a ring is broken; the job's own, to be read by whoever looks after it. */
int rway_pair_trouble_fd(const struct rway_job *job);

/* Any thread, while the job's loop exists. */
void rway_pair_read(const struct rway_job *job, struct rway_pair_state *state);
