/* Frames copied in and out in bursts, for applications that keep their frames in memory of their own. */
#include "ring.h"

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

uint32_t rway_frames_copy_in(struct rway_producer *producer, const uint8_t *bytes, const uint32_t *lens,
                             uint32_t count)
{
    uint32_t done = 0;
    while (done < count) {
        struct rway_frame frames[BURST];
        uint32_t claimed = 0;
        bool stop = false;
        for (; done < count && claimed < BURST; done++) {
            struct rway_frame *frame = &frames[claimed];
            int unfit = rway_producer_fits(producer, lens[done], 0);
            *frame = (struct rway_frame){.kind = RWAY_DESC_FRAME, .len = lens[done]};
            if (unfit) {
                rway_producer_drop(producer, (uint32_t)unfit - 1, 1);
            } else if (rway_ring_claim(producer, frame, 1) == 1) {
                scatter(producer, frame, bytes);
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

enum { TAG_AT = 12, TAG_LEN = 4 };

/* A frame whose tag was taken off gets it back: 802.1Q, TPID 0x8100 and the TCI behind the two addresses. */
static uint32_t put_tag(uint8_t *bytes, const struct rway_frame *frame, struct rway_offload *offload)
{
    memmove(bytes, bytes + TAG_LEN, TAG_AT);
    bytes[TAG_AT] = 0x81;
    bytes[TAG_AT + 1] = 0x00;
    bytes[TAG_AT + 2] = (uint8_t)(frame->vlan >> 8);
    bytes[TAG_AT + 3] = (uint8_t)frame->vlan;
    offload->csum_start += TAG_LEN;
    if (offload->hdr_len)
        offload->hdr_len += TAG_LEN;
    return frame->len + TAG_LEN;
}

uint32_t rway_frames_copy_out(struct rway_consumer *consumer, uint8_t *bytes, size_t size, uint32_t *lens,
                              uint32_t count)
{
    uint32_t copied = 0;
    struct rway_frame frame;
    while (copied < count && rway_ring_peek(consumer, &frame, 1) == 1) {
        struct rway_offload offload;
        if (frame.kind == RWAY_DESC_MARK)
            continue;
        uint32_t tag = frame.flags & RWAY_FLAG_VLAN ? TAG_LEN : 0;
        uint32_t len = frame.len;
        if (len + tag > size) {
            rway_consumer_put_back(consumer, &frame, 1);
            break;
        }
        if (rway_frame_offload(consumer, &frame, &offload) != 0) {
            rway_consumer_drop(consumer, RWAY_DROP_OFFLOAD, 1);
            continue;
        }
        gather(consumer, &frame, bytes + tag);
        if (tag)
            len = put_tag(bytes, &frame, &offload);
        rway_checksum_finish(bytes, len, &offload);
        bytes += len;
        size -= len;
        lens[copied++] = len;
    }
    rway_consumer_pass(consumer, consumer->cursor);
    rway_ring_release(consumer);
    return copied;
}
