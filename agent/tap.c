/*
 * A kernel interface as a port: frames read from a tap straight into slots, frames in slots written straight to it.
 *
 * The kernel's struct virtio_net_hdr, in front of each frame, and the extension line say the same things; they are
 * translated here and checked both ways. A 64 KiB TCP segment is one read, one frame over many slots, one write.
 */
#define _GNU_SOURCE
#include "agent/agent.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(struct virtio_net_hdr) == 10, "the tap's header length is the default one");
_Static_assert(sizeof(struct rway_piece) == sizeof(struct iovec), "a piece is handed to readv as it is");
_Static_assert(offsetof(struct rway_piece, len) == offsetof(struct iovec, iov_len), "likewise");

enum { TAG_AT = 12, TAG_LEN = 4 };

struct tap {
    struct rway_job job;
    int fd;
    bool gone;  /* the interface was deleted; written by the loop's thread */
    bool held;  /* the ring has no room for the longest frame */
    bool drops; /* what comes then, instead of leaving it to the kernel; written by any thread */
    int error;  /* of the last read, when there was no reason for one; written by the loop's thread */
    struct rway_producer *producer;
    struct rway_consumer *consumer;
    uint32_t frame_max;
};

/*
 * The kernel's header as our offload data. Our own kernel wrote it, which is no reason not to check it. Its hdr_len is
 * left out: it is the linear part of a buffer, less a VLAN tag that the kernel had not yet put in, so it can be shorter
 * than the headers. 0 means unknown, and whatever segments finds out for itself.
 */
static struct rway_offload offload_of(const struct virtio_net_hdr *header)
{
    struct rway_offload offload = {0};
    if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        offload.flags = RWAY_EXT_CSUM;
        offload.csum_start = header->csum_start;
        offload.csum_offset = header->csum_offset;
    }
    if (header->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        offload.flags |= RWAY_EXT_GSO;
        offload.gso_type = header->gso_type;
        offload.gso_size = header->gso_size;
    }
    return offload;
}

static struct virtio_net_hdr header_of(const struct rway_offload *offload, const struct rway_frame *frame)
{
    uint16_t tag = frame->flags & RWAY_FLAG_VLAN ? TAG_LEN : 0;
    struct virtio_net_hdr header = {0};
    if (offload->flags & RWAY_EXT_CSUM) {
        header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header.csum_start = offload->csum_start + tag;
        header.csum_offset = offload->csum_offset;
    } else if (frame->flags & RWAY_FLAG_CSUM_VALID) {
        header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    if (offload->flags & RWAY_EXT_GSO) {
        header.gso_type = (uint8_t)offload->gso_type;
        header.gso_size = offload->gso_size;
        header.hdr_len = offload->hdr_len ? offload->hdr_len + tag : 0;
    }
    return header;
}

static void set_gone(struct tap *tap)
{
    rway_write_once(&tap->gone, true);
}

/*
 * readv has given no frame. Did it take one all the same? Then it is dropped and counted: EINVAL is a packet that
 * struct virtio_net_hdr cannot say, and a few bytes are no frame. What else fails has taken none, and may fail each
 * time while poll calls the tap readable: it is noted, and read again when the loop wakes by its bound (see arm).
 */
static bool took_one(struct tap *tap, ssize_t got, int error)
{
    int unexpected = 0;
    bool taken = got > 0 || (got < 0 && error == EINVAL);
    if (taken)
        rway_producer_drop(tap->producer, got > 0 ? RWAY_DROP_RUNT : RWAY_DROP_OFFLOAD, 1);
    else if (got == 0)
        unexpected = ENODATA;
    else if (error == EBADFD)
        set_gone(tap);
    else if (error == EFAULT)
        rway_producer_vanished(tap->producer);
    else if (error != EAGAIN && error != EINTR && error != EIO)
        unexpected = error;
    rway_write_once(&tap->error, unexpected);
    return taken;
}

/* Read one frame into a claimed one. Returns 1, or 0 when there is none (or it was dropped: *again). */
static int read_one(struct tap *tap, struct rway_frame *frame, bool *again)
{
    struct virtio_net_hdr header;
    uint8_t beyond[64]; /* a frame that reaches in here is longer than it may be; the kernel would cut it silently */
    struct iovec pieces[RWAY_PIECES_MAX + 2];
    *again = false;
    uint32_t count = rway_producer_pieces(tap->producer, frame, (struct rway_piece *)&pieces[1]);
    pieces[0] = (struct iovec){.iov_base = &header, .iov_len = sizeof header};
    pieces[count + 1] = (struct iovec){.iov_base = beyond, .iov_len = sizeof beyond};
    ssize_t got = readv(tap->fd, pieces, (int)count + 2);
    int error = errno;
    if (got < (ssize_t)sizeof header) {
        rway_ring_trim(tap->producer, frame, 0);
        *again = took_one(tap, got, error);
        return 0;
    }
    rway_write_once(&tap->error, 0);
    struct rway_offload offload = offload_of(&header);
    uint32_t len = (uint32_t)got - (uint32_t)sizeof header;
    *again = true;
    int unfit = len > tap->frame_max ? RWAY_DROP_OVERSIZE + 1 : rway_producer_fits(tap->producer, len, 0);
    if (!unfit) {
        rway_ring_trim(tap->producer, frame, len);
        frame->flags = header.flags & VIRTIO_NET_HDR_F_DATA_VALID ? RWAY_FLAG_CSUM_VALID : 0;
        unfit = rway_frame_set_offload(tap->producer, frame, &offload) != 0 ? RWAY_DROP_OFFLOAD + 1 : 0;
    }
    if (unfit) {
        rway_producer_drop(tap->producer, (uint32_t)unfit - 1, 1);
        rway_ring_trim(tap->producer, frame, 0);
        return 0;
    }
    return 1;
}

/* The ring is full: drop a frame. Returns whether there was one; the kernel has cut off what is not read. */
static bool discard_one(struct tap *tap)
{
    uint8_t start[sizeof(struct virtio_net_hdr) + RWAY_FRAME_MIN];
    ssize_t got = read(tap->fd, start, sizeof start);
    if (got < (ssize_t)sizeof start)
        return took_one(tap, got, errno);
    rway_write_once(&tap->error, 0);
    rway_producer_drop(tap->producer, RWAY_DROP_FULL, 1);
    return true;
}

/*
 * Tap to ring. Without room for the longest frame the tap is left alone, unless it is to drop: the kernel's queue is
 * the place to wait.
 */
static uint32_t fill_ring(struct tap *tap)
{
    struct rway_frame frames[RWAY_BURST];
    uint32_t filled = 0, dropped = 0;
    bool again = true;
    while (again && filled + dropped < RWAY_BURST) {
        frames[filled] = (struct rway_frame){.len = tap->frame_max};
        tap->held = rway_ring_claim(tap->producer, &frames[filled], 1) == 0;
        if (tap->held) {
            again = rway_read_once(&tap->drops) && discard_one(tap);
        } else if (read_one(tap, &frames[filled], &again)) {
            filled++;
            continue;
        }
        dropped += again;
    }
    rway_ring_publish(tap->producer, frames, filled);
    return filled + dropped;
}

/* False: the frame is dropped, and counted. */
static bool write_one(struct tap *tap, const struct rway_frame *frame)
{
    struct iovec pieces[RWAY_PIECES_MAX + 3];
    struct rway_offload offload;
    if (rway_frame_offload(tap->consumer, frame, &offload) != 0) {
        rway_consumer_drop(tap->consumer, RWAY_DROP_OFFLOAD, 1);
        return false;
    }
    struct virtio_net_hdr header = header_of(&offload, frame);
    const uint8_t tag[TAG_LEN] = {0x81, 0x00, (uint8_t)(frame->vlan >> 8), (uint8_t)frame->vlan};
    uint32_t first = frame->flags & RWAY_FLAG_VLAN ? 3 : 1;
    uint32_t count = first + rway_consumer_pieces(tap->consumer, frame, (struct rway_piece *)&pieces[first]);
    pieces[0] = (struct iovec){.iov_base = &header, .iov_len = sizeof header};
    if (first == 3) {
        /* A tag that was taken off goes back between the addresses and the type. */
        pieces[1] = (struct iovec){.iov_base = pieces[3].iov_base, .iov_len = TAG_AT};
        pieces[2] = (struct iovec){.iov_base = (void *)tag, .iov_len = TAG_LEN};
        pieces[3].iov_base = (uint8_t *)pieces[3].iov_base + TAG_AT;
        pieces[3].iov_len -= TAG_AT;
    }
    rway_consumer_begin(tap->consumer, frame);
    if (writev(tap->fd, pieces, (int)count) >= 0)
        return true;
    if (errno == EBADFD)
        set_gone(tap);
    if (errno == EFAULT)
        rway_consumer_vanished(tap->consumer);
    rway_consumer_drop(tap->consumer, RWAY_DROP_SINK, 1);
    return false;
}

/* Ring to tap. A frame that is dropped is the last of its burst: see rway_consumer_begin. */
static uint32_t empty_ring(struct tap *tap)
{
    struct rway_frame frames[RWAY_BURST];
    uint32_t taken = rway_ring_peek(tap->consumer, frames, RWAY_BURST), done = 0;
    bool written = true;
    while (written && done < taken)
        written = write_one(tap, &frames[done++]);
    rway_consumer_put_back(tap->consumer, &frames[done], taken - done);
    rway_ring_release(tap->consumer);
    return done;
}

static uint32_t run(struct rway_job *job)
{
    struct tap *tap = (struct tap *)job;
    uint32_t moved = empty_ring(tap);
    return tap->gone ? moved : moved + fill_ring(tap);
}

static void arm(struct rway_job *job, struct rway_waiter *waiter)
{
    struct tap *tap = (struct tap *)job;
    rway_waiter_add_consumer(waiter, tap->consumer);
    if (tap->gone)
        return;
    if (tap->held && !rway_read_once(&tap->drops))
        rway_waiter_add_producer(waiter, tap->producer, rway_producer_slots(tap->producer, tap->frame_max, 0));
    else if (tap->error == 0) /* else poll returns at once; the waiter's bound, at most 80 ms, is soon enough */
        rway_waiter_add_fd(waiter, tap->fd, POLLIN);
}

void rway_tap_set_full(struct rway_job *job, int drop)
{
    rway_write_once(&((struct tap *)job)->drops, drop != 0);
}

int rway_tap_gone(const struct rway_job *job)
{
    return rway_read_once(&((const struct tap *)job)->gone);
}

int rway_tap_error(const struct rway_job *job)
{
    return rway_read_once(&((const struct tap *)job)->error);
}

static void release(struct rway_job *job)
{
    free(job);
}

struct rway_job *rway_tap_new(int tap_fd, struct rway_producer *producer, struct rway_consumer *consumer,
                              uint32_t frame_max)
{
    struct tap *tap = calloc(1, sizeof *tap);
    if (tap == NULL)
        return NULL;
    *tap = (struct tap){.job = {.run = run, .arm = arm, .free = release},
                        .fd = tap_fd,
                        .producer = producer,
                        .consumer = consumer,
                        .frame_max = frame_max};
    return &tap->job;
}
