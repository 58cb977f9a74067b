/*
 * What the C files of vhost/ include: a guest's memory and its rings, as this side keeps them in private memory.
 *
 * Everything in a guest's memory is the guest's word, and can change between two looks: each word is loaded once into a
 * private variable, checked, and used from there (law 4). Private cursors say where we are in a ring; what we have
 * written into one is never read back.
 */
#ifndef RWAY_VHOST_H
#define RWAY_VHOST_H

#include "engine/job.h"

#pragma GCC visibility push(default)
#include "vhost/api.h"
#pragma GCC visibility pop

#include <linux/virtio_ring.h>

struct rway_guest_mapping {
    struct rway_guest_region region;
    uint8_t *at; /* where the region begins */
    void *map;   /* what was mapped, by whole pages */
    uint64_t map_size;
    uint64_t device; /* the file's, by which it is known again */
    uint64_t inode;
};

struct rway_guest {
    int broken; /* RWAY_BROKEN_VANISHED once the SIGBUS guard has been at work */
    uint32_t count;
    struct rway_guest_mapping mappings[RWAY_GUEST_REGIONS_MAX];
};

/*
 * The one way from a guest's address to a pointer. In: how many bytes are wanted; out: how many of them lie there in
 * one piece, at least 1. NULL when the address is nobody's: without that check a guest would read and write ours.
 */
static inline uint8_t *rway_guest_at(const struct rway_guest *guest, uint64_t address, uint64_t *len)
{
    for (uint32_t i = 0; i < guest->count; i++) {
        const struct rway_guest_mapping *mapping = &guest->mappings[i];
        uint64_t into = address - mapping->region.guest;
        if (into >= mapping->region.size)
            continue;
        if (*len > mapping->region.size - into)
            *len = mapping->region.size - into;
        return mapping->at + into;
    }
    return NULL;
}

/* The same from an address of the front end, for all of len bytes; NULL when no single region holds them. */
uint8_t *rway_guest_user(const struct rway_guest *guest, uint64_t address, uint64_t len);

/* A chain of descriptors, fetched. Its pieces follow those of the chains fetched before it in the ring's pieces. */
struct rway_chain {
    uint64_t len;    /* bytes */
    uint32_t pieces; /* there are */
    uint16_t id;     /* by which it is given back */
    uint16_t slots;  /* entries of the ring that it takes: 1 in a split one */
    bool bad;        /* not memory of the guest, or for the other direction: to be given back unused */
};

/* Where a ring stands. Counters of a split ring run freely modulo 65536; of a packed one they are indexes. */
struct rway_vring_cursor {
    uint16_t at;
    bool wrap; /* packed: the wrap counter. Virtio 1.2, 2.8.1 */
};

struct rway_vring {
    struct rway_guest *guest;
    struct rway_vring_setup setup;
    bool started;
    bool enabled;
    bool writable; /* the device writes into its buffers: a receive ring */
    bool packed;
    bool indirect;
    bool event_idx;
    bool listening; /* the guest was told to kick */
    int broken;     /* enum rway_vring_break; written by the loop's thread */
    uint8_t *desc;
    uint8_t *avail;
    uint8_t *used;
    uint32_t size;
    struct rway_vring_cursor next;     /* to be fetched */
    struct rway_vring_cursor done;     /* to be given back */
    struct rway_vring_cursor shown;    /* given back, as the guest has been told */
    struct rway_vring_cursor notified; /* up to here it was considered whether to notify */
    struct rway_vring_cursor seen;     /* split: the available index, checked; packed: where nothing was found */
    uint16_t first_flags; /* packed: of the first descriptor given back, kept back until the batch is shown */
    int kick_fd;
    int call_fd;
    uint32_t piece_count;
    struct rway_piece pieces[RWAY_CHAIN_MAX];
};

/* As rway_pair_start; on refusal the ring is as it was. */
int rway_vring_start(struct rway_vring *ring, struct rway_guest *guest, const struct rway_vring_setup *setup,
                     struct rway_error *error);

/* Does a ring that is started lie in this memory? And find it there; false as before, and nothing is changed. */
bool rway_vring_lies_in(const struct rway_vring *ring, const struct rway_guest *guest);
bool rway_vring_place(struct rway_vring *ring, struct rway_guest *guest);

/* Its position for VHOST_USER_GET_VRING_BASE. */
uint32_t rway_vring_base(const struct rway_vring *ring);

enum rway_fetch {
    RWAY_FETCH_NONE, /* there is no chain */
    RWAY_FETCH_CHAIN,
    RWAY_FETCH_NO_ROOM, /* for its pieces, beside those of others; it stays where it is */
    RWAY_FETCH_BROKEN   /* the ring, now or before */
};

/* Fetch the next chain; its pieces go behind those there are (rway_vring_put_back forgets them). */
enum rway_fetch rway_vring_fetch(struct rway_vring *ring, struct rway_chain *chain);

/* Leave what was fetched since the cursor stood at next where it is; or, with the cursor as it is, begin a frame. */
static inline void rway_vring_put_back(struct rway_vring *ring, struct rway_vring_cursor next)
{
    ring->next = next;
    ring->piece_count = 0;
}

/* Give a chain back, len bytes of it written. In the order in which they were fetched. Nothing is shown yet. */
void rway_vring_use(struct rway_vring *ring, const struct rway_chain *chain, uint32_t len);

/* Show the guest what was given back. */
void rway_vring_show(struct rway_vring *ring);

/* After a show: does the guest want to be notified of it? */
bool rway_vring_wants_call(struct rway_vring *ring);

/*
 * Tell the guest whether to kick when it makes buffers available. After telling it to, look again (rway_vring_has)
 * before sleeping.
 */
void rway_vring_listen(struct rway_vring *ring, bool listen);

/* Has the guest made more available than the last fetch that found none has seen? Only a hint. */
bool rway_vring_has(const struct rway_vring *ring);

static inline bool rway_vring_runs(const struct rway_vring *ring)
{
    return ring->started && ring->broken == RWAY_VRING_WHOLE;
}

void rway_vring_break(struct rway_vring *ring, int cause);

/* The parts of a ring's interface that its format decides: split.c and packed.c. */
enum rway_fetch rway_split_fetch(struct rway_vring *ring, struct rway_chain *chain);
void rway_split_use(struct rway_vring *ring, const struct rway_chain *chain, uint32_t len);
void rway_split_show(struct rway_vring *ring);
bool rway_split_wants_call(struct rway_vring *ring);
void rway_split_listen(struct rway_vring *ring, bool listen);
bool rway_split_has(const struct rway_vring *ring);

enum rway_fetch rway_packed_fetch(struct rway_vring *ring, struct rway_chain *chain);
void rway_packed_use(struct rway_vring *ring, const struct rway_chain *chain, uint32_t len);
void rway_packed_show(struct rway_vring *ring);
bool rway_packed_wants_call(struct rway_vring *ring);
void rway_packed_listen(struct rway_vring *ring, bool listen);
bool rway_packed_has(const struct rway_vring *ring);

/* A descriptor, private. Flags of both formats: VRING_DESC_F_NEXT, _WRITE, _INDIRECT have the same bits. */
struct rway_vring_desc {
    uint64_t address;
    uint32_t len;
    uint16_t flags;
    uint16_t next; /* packed: the buffer's id */
};

/* The one at that place, each word of it loaded once. The two formats have their words in different order. */
struct rway_vring_desc rway_split_load(const uint8_t *at);
struct rway_vring_desc rway_packed_load(const uint8_t *at);

/*
 * Add the memory of a descriptor, or of the indirect table that it names, to a chain: CHAIN, NO_ROOM or BROKEN. What is
 * no memory of the guest, or for the other direction, makes the chain bad, and is not touched.
 */
enum rway_fetch rway_chain_add(struct rway_vring *ring, struct rway_chain *chain, const struct rway_vring_desc *desc);

#endif
