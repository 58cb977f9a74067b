/* Frames copied in and out in bursts, for applications that keep their frames in memory of their own. */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

static void scatter(const struct rway_producer *producer, const struct rway_frame *frame, const uint8_t *bytes)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t count = rway_producer_pieces(producer, frame, pieces);
    for (uint32_t i = 0; i < count; i++) {
        memcpy(pieces[i].data, bytes, pieces[i].len);
        bytes += pieces[i].len;
    }
}

static void gather(const struct rway_consumer *consumer, const struct rway_frame *frame, uint8_t *bytes)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint32_t count = rway_consumer_pieces(consumer, frame, pieces);
    for (uint32_t i = 0; i < count; i++) {
        memcpy(bytes, pieces[i].data, pieces[i].len);
        bytes += pieces[i].len;
    }
}

enum { BURST = 64 };

static const struct rway_offload NOTHING_LEFT = {0};

/* 0, or enum rway_drop + 1 naming why the link never carries such a frame. */
static int unfit_for(const struct rway_producer *producer, uint32_t len, const struct rway_offload *offload)
{
    int unfit = rway_producer_fits(producer, len, 0);
    return unfit || rway_offload_check(offload, len) == 0 ? unfit : RWAY_DROP_OFFLOAD + 1;
}

uint32_t rway_frames_copy_in_whole(struct rway_producer *producer, const uint8_t *bytes, const uint32_t *lens,
                                   const struct rway_offload *offloads, uint32_t count)
{
    uint32_t done = 0;
    while (done < count) {
        struct rway_frame frames[BURST];
        uint32_t claimed = 0;
        bool stop = false;
        for (; done < count && claimed < BURST; done++) {
            struct rway_frame *frame = &frames[claimed];
            const struct rway_offload *offload = offloads ? &offloads[done] : &NOTHING_LEFT;
            int unfit = unfit_for(producer, lens[done], offload);
            *frame = (struct rway_frame){.len = lens[done]};
            if (unfit) {
                rway_producer_drop(producer, (uint32_t)unfit - 1, 1);
            } else if (rway_ring_claim(producer, frame, 1) == 1) {
                scatter(producer, frame, bytes);
                rway_frame_set_offload(producer, frame, offload);
                claimed++;
            } else {
                stop = true;
                break;
            }
            bytes += lens[done];
        }
        rway_ring_publish(producer, frames, claimed);
        if (stop)
            break;
    }
    return done;
}

uint32_t rway_frames_copy_in(struct rway_producer *producer, const uint8_t *bytes, const uint32_t *lens, uint32_t count)
{
    return rway_frames_copy_in_whole(producer, bytes, lens, NULL, count);
}

enum { TAG_AT = 12, TAG_LEN = 4 };

/* A frame whose tag was taken off gets it back: 802.1Q, TPID 0x8100 and the TCI behind the two addresses. */
static void put_tag(uint8_t *bytes, uint16_t vlan, struct rway_offload *offload)
{
    memmove(bytes, bytes + TAG_LEN, TAG_AT);
    bytes[TAG_AT] = 0x81;
    bytes[TAG_AT + 1] = 0x00;
    bytes[TAG_AT + 2] = (uint8_t)(vlan >> 8);
    bytes[TAG_AT + 3] = (uint8_t)vlan;
    if (offload->flags & RWAY_EXT_CSUM)
        offload->csum_start += TAG_LEN;
    if (offload->hdr_len)
        offload->hdr_len += TAG_LEN;
}

static uint32_t tag_of(const struct rway_frame *frame)
{
    return frame->flags & RWAY_FLAG_VLAN ? TAG_LEN : 0;
}

/* All of the frame, its tag too, to bytes. */
static void gather_tagged(const struct rway_consumer *consumer, const struct rway_frame *frame, uint8_t *bytes,
                          struct rway_offload *offload)
{
    uint32_t tag = tag_of(frame);
    gather(consumer, frame, bytes + tag);
    if (tag)
        put_tag(bytes, frame->vlan, offload);
}

/* The caller's memory, as far as it is not filled. */
struct copies {
    uint8_t *bytes;
    size_t size;
    uint32_t *lens;
    struct rway_offload *offloads; /* NULL: nothing may be left to do */
    uint32_t copied;
    uint32_t count;
};

static void add_copy(struct copies *copies, uint32_t len, const struct rway_offload *offload)
{
    if (copies->offloads)
        copies->offloads[copies->copied] = *offload;
    copies->lens[copies->copied++] = len;
    copies->bytes += len;
    copies->size -= len;
}

/* False: some of the frame that is being cut are still left. */
static bool give_segments(struct rway_consumer *consumer, struct copies *copies)
{
    uint32_t len;
    while ((len = rway_segmenter_next_len(&consumer->cut)) != 0) {
        if (copies->copied == copies->count || len > copies->size)
            return false;
        rway_segmenter_next(&consumer->cut, copies->bytes);
        add_copy(copies, len, &NOTHING_LEFT);
    }
    return true;
}

/* Into memory of the consumer, because its segments may be asked for by several calls. */
static bool cut_frame(struct rway_consumer *consumer, const struct rway_frame *frame, struct rway_offload *offload,
                      struct copies *copies)
{
    if (consumer->cut_bytes == NULL)
        consumer->cut_bytes = malloc(consumer->ring.frame_max + TAG_LEN);
    if (consumer->cut_bytes == NULL) {
        rway_consumer_put_back(consumer, frame, 1);
        return false;
    }
    gather_tagged(consumer, frame, consumer->cut_bytes, offload);
    if (rway_segmenter_begin(&consumer->cut, consumer->cut_bytes, frame->len + tag_of(frame), offload) != 0) {
        rway_consumer_drop(consumer, RWAY_DROP_OFFLOAD, 1);
        return true;
    }
    return give_segments(consumer, copies);
}

/* False: there is no room for more. */
static bool copy_frame(struct rway_consumer *consumer, const struct rway_frame *frame, struct copies *copies)
{
    uint32_t len = frame->len + tag_of(frame);
    struct rway_offload offload;
    if (rway_frame_offload(consumer, frame, &offload) != 0) {
        rway_consumer_drop(consumer, RWAY_DROP_OFFLOAD, 1);
        return true;
    }
    if (offload.flags & RWAY_EXT_GSO && copies->offloads == NULL)
        return cut_frame(consumer, frame, &offload, copies);
    if (len > copies->size) {
        rway_consumer_put_back(consumer, frame, 1);
        return false;
    }
    gather_tagged(consumer, frame, copies->bytes, &offload);
    if (copies->offloads == NULL)
        rway_checksum_finish(copies->bytes, len, &offload);
    add_copy(copies, len, &offload);
    return true;
}

int rway_segments_wait(const struct rway_consumer *consumer)
{
    return rway_segmenter_next_len(&consumer->cut) != 0;
}

uint32_t rway_frames_copy_out_whole(struct rway_consumer *consumer, uint8_t *bytes, size_t size, uint32_t *lens,
                                    struct rway_offload *offloads, uint32_t count)
{
    struct copies copies = {.bytes = bytes, .size = size, .lens = lens, .offloads = offloads, .count = count};
    struct rway_frame frame;
    bool going = give_segments(consumer, &copies);
    while (going && copies.copied < count && rway_ring_peek(consumer, &frame, 1) == 1)
        going = copy_frame(consumer, &frame, &copies);
    rway_ring_release(consumer);
    return copies.copied;
}

uint32_t rway_frames_copy_out(struct rway_consumer *consumer, uint8_t *bytes, size_t size, uint32_t *lens,
                              uint32_t count)
{
    return rway_frames_copy_out_whole(consumer, bytes, size, lens, NULL, count);
}
