/* A region seen from outside, with pread: what broker and tools use, whom no vanished page may stop. */
#define _GNU_SOURCE
#include "ring.h"

#include <sys/stat.h>
#include <unistd.h>

static int read_at(int fd, void *to, size_t size, uint64_t offset, struct rway_error *error)
{
    ssize_t got = pread(fd, to, size, (off_t)offset);
    if (got == (ssize_t)size)
        return 0;
    if (got >= 0)
        return rway_refuse(error, RWAY_REFUSED_SIZE, "size of the carrier", offset + (uint64_t)got, offset + size);
    return rway_refuse_errno(error, "pread");
}

static int find_places(int fd, const struct rway_header *header, struct rway_shape *shape, struct rway_places *places,
                       struct rway_error *error)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return rway_refuse_errno(error, "fstat");
    return rway_header_check(header, (uint64_t)status.st_size, shape, places, error);
}

int rway_region_read(int fd, struct rway_snapshot *snapshot, struct rway_error *error)
{
    struct rway_shape shape;
    struct rway_places places;
    int refused = read_at(fd, &snapshot->header, sizeof snapshot->header, 0, error);
    if (!refused)
        refused = find_places(fd, &snapshot->header, &shape, &places, error);
    for (int side = 0; side < 2 && !refused; side++)
        refused = read_at(fd, &snapshot->sides[side], sizeof snapshot->sides[side], places.side[side], error);
    return refused;
}

/* Count frames between tail and head, a page of descriptors at a time. Ends early at a descriptor that cannot be. */
static int walk(int fd, uint64_t descs_offset, uint32_t slot_count, uint64_t begun, struct rway_ring_snapshot *ring,
                struct rway_error *error)
{
    struct rway_desc page[256];
    uint64_t at = ring->tail;
    uint64_t ahead = begun == 0 || begun - at > ring->head - at ? 0 : begun - at; /* slots that were begun */
    uint32_t inside = 0; /* slots of the current frame still to come */
    while (at != ring->head) {
        uint32_t index = (uint32_t)at & (slot_count - 1);
        uint64_t count = ring->head - at;
        if (count > slot_count - index)
            count = slot_count - index;
        if (count > 256)
            count = 256;
        int refused = read_at(fd, page, count * sizeof *page, descs_offset + index * sizeof *page, error);
        if (refused)
            return refused;
        for (uint64_t i = 0; i < count; i++) {
            if (inside != 0) {
                inside--;
                continue;
            }
            if (page[i].slots == 0 || page[i].kind != RWAY_DESC_FRAME)
                return 0;
            ring->in_flight++;
            ring->begun += at + i - ring->tail < ahead;
            inside = page[i].slots - 1u;
        }
        at += count;
    }
    return 0;
}

/*
 * On a live ring the tail can move past the head that was read just before it, and drops are stored a moment after the
 * counter that they belong to. What is still so after a few readings is so.
 */
enum { READS_MAX = 8 };

static bool is_settled(const struct rway_ring_control *control, uint32_t slot_count)
{
    struct rway_counts produced = control->produced, consumed = control->consumed;
    rway_counts_settle(&produced, control->published, control->head);
    rway_counts_settle(&consumed, control->released, control->tail);
    return control->head - control->tail <= slot_count &&
           produced.drops[RWAY_DROP_RESTART] == control->produced.drops[RWAY_DROP_RESTART] &&
           consumed.drops[RWAY_DROP_RESTART] == control->consumed.drops[RWAY_DROP_RESTART];
}

int rway_ring_read(int fd, const struct rway_snapshot *snapshot, uint32_t producing_side, uint32_t queue,
                   struct rway_ring_snapshot *ring, struct rway_error *error)
{
    struct rway_shape shape;
    struct rway_places places;
    struct rway_ring_control control;
    if (producing_side > RWAY_SIDE_B || queue >= snapshot->header.geometry.queues)
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "queue", queue, snapshot->header.geometry.queues);
    int refused = find_places(fd, &snapshot->header, &shape, &places, error);
    if (refused)
        return refused;
    uint64_t offset = places.rings[producing_side] + queue * shape.queue_size;
    uint32_t slot_count = snapshot->header.geometry.slot_count;
    int reads = 0;
    do {
        if ((refused = read_at(fd, &control, sizeof control, offset, error)))
            return refused;
    } while (!is_settled(&control, slot_count) && ++reads < READS_MAX);
    int produced = rway_counts_settle(&control.produced, control.published, control.head);
    int consumed = rway_counts_settle(&control.consumed, control.released, control.tail);
    *ring = (struct rway_ring_snapshot){.head = control.head,
                                        .tail = control.tail,
                                        .produced = control.produced,
                                        .consumed = control.consumed,
                                        .originated = control.originated[produced < 0 ? 0 : produced],
                                        .replicated = control.replicated[consumed < 0 ? 0 : consumed]};
    if (control.head - control.tail > slot_count)
        return rway_refuse(error, RWAY_REFUSED_COUNTERS, "head minus tail", control.head - control.tail, slot_count);
    return walk(fd, offset + sizeof control, slot_count, control.begun, ring, error);
}
