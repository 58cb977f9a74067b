/*
 * What one side keeps in private memory about a region and its rings. Peers cannot write any of this; what was
 * checked at attach is used from here and never read from shared memory again.
 */
#ifndef RINGWAY_RING_H
#define RINGWAY_RING_H

#include <stdbool.h>

#include "ringway.h"

/* Where a ring lies and how it is divided; constant while attached. */
struct rway_ring {
    struct rway_ring_control *control;
    struct rway_desc *descs;
    uint8_t *slots;
    uint32_t slot_count;
    uint32_t mask;
    uint32_t stride;
    uint32_t payload;
    uint32_t headroom;
    uint32_t frame_max;
    struct rway_region *region;
};

/* The bell of one sleeper, and the peer's. */
struct rway_bell {
    int wait_fd;
    int ring_fd;
    uint32_t idle_streak;    /* bells in a row that brought no work */
    uint64_t muted_until_ns; /* not listened to before; UINT64_MAX: never again, the other end of the pipe is gone */
};

/* A number that goes with the commits of a counter. It seldom changes, and costs a comparison where it does not. */
struct rway_extra {
    uint64_t now;
    uint64_t stored[2]; /* as last stored beside either commit */
};

struct rway_producer {
    struct rway_ring ring;
    uint64_t head;      /* published */
    uint64_t claimed;   /* head plus what is claimed and not yet published */
    uint64_t peer_tail; /* last one seen and checked */
    uint64_t looked_at; /* the consumer's wake word was looked at, after a full fence, for steps up to here */
    struct rway_counts counts;
    uint64_t dropped;     /* the sum of counts.drops */
    uint32_t next_commit; /* which of the two is not the present head's */
    uint64_t dirty;       /* words of counts that changed since they were last published, by rway_counts_bit */
    struct rway_extra originated;
    uint64_t attached_at; /* head as it was at attach */
    struct rway_bell bell;
};

struct rway_consumer {
    struct rway_ring ring;
    uint64_t tail;      /* released */
    uint64_t cursor;    /* tail plus what is peeked and not yet released */
    uint64_t peer_head; /* last one seen and checked */
    uint64_t looked_at; /* as in a producer, for the producer's wake word */
    uint32_t stalled;   /* as last said */
    uint64_t taken_frames;
    uint32_t usual_len;   /* bytes to prefetch of a frame, from what the last one had */
    uint64_t taken_bytes; /* since the last release */
    struct rway_counts counts;
    uint64_t dropped;     /* the sum of counts.drops */
    uint32_t next_commit; /* which of the two is not the present tail's */
    uint64_t dirty;       /* as in a producer */
    struct rway_extra replicated;
    uint64_t attached_at; /* tail as it was at attach */
    struct rway_bell bell;
    struct rway_segmenter cut; /* the frame whose segments rway_frames_copy_out gives; all 0: none */
    uint8_t *cut_bytes;        /* its bytes, frame_max and a tag; made when the first such frame comes */
};

struct rway_region {
    uint8_t *memory;
    uint64_t size;
    bool mapped; /* by us: unmap at detach */
    int broken;  /* enum rway_break; written by any thread and by the SIGBUS guard */
    struct rway_geometry geometry;
    struct rway_shape shape;
    uint64_t link_id;
    struct rway_side *own;
    const struct rway_side *peer;
    struct rway_producer *producers; /* geometry.queues of them */
    struct rway_consumer *consumers;
};

/* Attach over memory that is mapped already and stays the caller's; for what rway_region_attach does after mmap. */
struct rway_region *rway_region_over(void *memory, uint64_t size, const struct rway_geometry *offer, uint64_t link_id,
                                     uint32_t side, uint32_t incarnation, struct rway_error *error);

/* Check a private copy of a header, and find the sections: offsets of the two sides and of the two directions. */
struct rway_places {
    uint64_t side[2];
    uint64_t rings[2];
};
int rway_header_check(const struct rway_header *header, uint64_t carrier_size, struct rway_shape *shape,
                      struct rway_places *places, struct rway_error *error);

/* The first cause wins; the side says so to whoever reads the region. */
void rway_region_break(struct rway_region *region, int cause);

static inline bool rway_ring_whole(const struct rway_ring *ring)
{
    return __builtin_expect(rway_read_once(&ring->region->broken) == RWAY_WHOLE, 1);
}

static inline uint8_t *rway_slot(const struct rway_ring *ring, uint32_t index)
{
    return ring->slots + (uint64_t)index * ring->stride;
}

/*
 * Bring a line here to be written: for itself alone, so that the store needs no second trip to the other core. GCC
 * spells a prefetch for writing as one for reading unless told the processor; on x86-64 those without the instruction
 * decode it as doing nothing.
 */
static inline void rway_prefetch_write(const void *line)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

/* Does W lie in (from, to]? Then the counter's step from one to the other is what its sleeper waits for. */
static inline bool rway_step_wakes(uint64_t from, uint64_t to, uint64_t wake)
{
    return wake - from - 1 < to - from;
}

/* The bit of a word of counts. Frames and bytes are published with the counter and have none. */
#define rway_counts_bit(word) ((uint64_t)1 << offsetof(struct rway_counts, word) / sizeof(uint64_t))
_Static_assert(offsetof(struct rway_counts, drops) / sizeof(uint64_t) + RWAY_DROPS <= 64, "each word has a bit");

static inline uint64_t rway_drop_bit(uint32_t cause)
{
    return rway_counts_bit(drops) << cause;
}

void rway_bell_ring(struct rway_bell *bell, struct rway_counts *counts, uint64_t *dirty);
void rway_bell_close(struct rway_bell *bell);

/* Publish all of the private counts, drops and bells included. */
void rway_counts_store(struct rway_counts *shared, const struct rway_counts *counts);

/* Publish what has changed since, and say that nothing has. */
void rway_counts_store_dirty(struct rway_counts *shared, const struct rway_counts *counts, uint64_t *dirty);

/* The same for one half. Drops of frames not released yet stay private: after a kill those come again. */
void rway_producer_show_counts(struct rway_producer *producer);
void rway_consumer_show_counts(struct rway_consumer *consumer);

/* Ahead of the commit with that index, or, for the one that is the counter's, of drops that are stored without one. */
static inline void rway_extra_store(uint64_t shared[2], struct rway_extra *extra, uint32_t index)
{
    if (__builtin_expect(extra->stored[index] == extra->now, 1))
        return;
    rway_keep_order(); /* behind the counter's last store, as a commit */
    rway_write_once(&shared[index], extra->now);
    rway_keep_order();
    extra->stored[index] = extra->now;
}

/* Write down what the account is once the counter is at at, which is to be stored next. See "Restarts" in layout.h. */
static inline void rway_commit_store(struct rway_commit commits[2], uint32_t *next, uint64_t at,
                                     const struct rway_counts *counts, uint64_t dropped)
{
    struct rway_commit *commit = &commits[*next];
    /* Behind the counter's last store: until then this copy is the one that belongs to it. */
    rway_keep_order();
    rway_write_once(&commit->frames, counts->frames);
    rway_write_once(&commit->bytes, counts->bytes);
    rway_write_once(&commit->dropped, dropped);
    rway_store_release(&commit->at, at);
    *next ^= 1;
}

/*
 * Make counts those that belong to a counter that was found at at, after a kill too. commits is a private copy of what
 * an end wrote. Returns the index of its commit; -1: it has none, and counts are taken as they are. Pure.
 */
int rway_counts_settle(struct rway_counts *counts, const struct rway_commit commits[2], uint64_t at);

/* The sum of all drops, modulo 2 to the 64. Pure. */
uint64_t rway_counts_dropped(const struct rway_counts *counts);

/* Take up a ring where its counters stand: what an end before, alive or killed, has left. See resume.c. */
int rway_producer_resume(struct rway_producer *producer, struct rway_ring ring, struct rway_error *error);
int rway_consumer_resume(struct rway_consumer *consumer, struct rway_ring ring, struct rway_error *error);

#endif
