/* A queue pair's job, in private memory: what receive.c and transmit.c share. */
#ifndef RWAY_VHOST_PAIR_H
#define RWAY_VHOST_PAIR_H

#include "vhost.h"

#include <linux/virtio_net.h>
#include <pthread.h>
#include <string.h>

enum { TAG_AT = 12, TAG_LEN = 4 };

/* With VERSION_1 or MRG_RXBUF the header has num_buffers at its end: virtio 1.2, 5.1.6. */
enum { HEADER_LEN = sizeof(struct virtio_net_hdr_mrg_rxbuf), LEGACY_HEADER_LEN = sizeof(struct virtio_net_hdr) };
_Static_assert(HEADER_LEN == 12 && LEGACY_HEADER_LEN == 10, "the two lengths of a header");

struct pair {
    struct rway_job job;
    struct rway_producer *producer;
    struct rway_consumer *sources[RWAY_QUEUES_MAX]; /* of the frames for the guest */
    uint32_t source_count;
    uint32_t next_source; /* to begin with, so that none is always the last */
    uint32_t frame_max;   /* bytes of the link's longest frame */
    struct rway_guest *guest;
    struct rway_vring rings[2]; /* by enum rway_vring_id */
    pthread_mutex_t lock;       /* over guest and rings: the loop's thread in a turn, or whoever has paused the job */
    uint32_t paused;            /* somebody wants the lock, or has it; the loop's thread then stays away */
    int epoll_fd; /* what wakes the loop: kicks and wake_fd, edge by edge, so that nothing has to be read */
    int wake_fd;
    int trouble_fd;            /* readable once a ring is broken */
    bool drops;                /* frames that find no room in the link; written by any thread */
    bool held;                 /* the link has no room for the guest's next frame */
    uint32_t held_len;         /* bytes of that frame */
    bool starved;              /* the guest has no buffers for the link's next frame */
    struct rway_segmenter cut; /* the frame whose segments the guest is being given; all 0: none */
    uint8_t *whole;            /* its bytes, and behind them room for a segment; made when the first such frame comes */
    struct rway_pair_state state;
    struct rway_chain chains[RWAY_CHAIN_MAX]; /* buffers of one frame */
};

static inline bool pair_has(const struct rway_vring *ring, int feature)
{
    return ring->setup.features >> feature & 1;
}

/* A place in a row of pieces. */
struct place {
    const struct rway_piece *piece;
    size_t into;
};

/* Copy len bytes, which both rows hold, from one place to another, and move both behind them. */
static inline void pieces_copy(struct place *to, struct place *from, size_t len)
{
    while (len != 0) {
        size_t here = len;
        if (here > to->piece->len - to->into)
            here = to->piece->len - to->into;
        if (here > from->piece->len - from->into)
            here = from->piece->len - from->into;
        memcpy(to->piece->data + to->into, from->piece->data + from->into, here);
        len -= here;
        to->into += here;
        from->into += here;
        if (to->into == to->piece->len)
            *to = (struct place){.piece = to->piece + 1};
        if (from->into == from->piece->len)
            *from = (struct place){.piece = from->piece + 1};
    }
}

/* Does the guest take frames by this pair? */
static inline bool pair_receives(const struct pair *pair)
{
    return rway_vring_runs(&pair->rings[RWAY_VRING_RECEIVE]) && pair->rings[RWAY_VRING_RECEIVE].enabled;
}

/* Tell the guest that buffers were given back, if it wants to know. */
void pair_call(struct pair *pair, uint32_t ring);

/* Link to guest, and guest to link. Each returns how many frames and buffers it dealt with. */
uint32_t pair_receive(struct pair *pair);
uint32_t pair_transmit(struct pair *pair);

#endif
