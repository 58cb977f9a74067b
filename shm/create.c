/* Regions made and formatted, which only the broker does. */
#define _GNU_SOURCE
#include "ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21 << 26)
#endif

uint32_t rway_layout_version(void)
{
    return (uint32_t)RWAY_LAYOUT_MAJOR << 16 | RWAY_LAYOUT_MINOR;
}

static void add_section(struct rway_header *header, uint32_t kind, uint64_t offset, uint64_t length, uint32_t writer,
                        uint32_t reader)
{
    header->sections[header->section_count++] =
        (struct rway_section){.kind = kind, .offset = offset, .length = length, .writer = writer, .reader = reader};
}

static void format(struct rway_header *header, const struct rway_geometry *geometry, const struct rway_shape *shape,
                   uint64_t link_id)
{
    header->major = RWAY_LAYOUT_MAJOR;
    header->minor = RWAY_LAYOUT_MINOR;
    header->header_size = RWAY_HEADER_SIZE;
    header->region_size = shape->region_size;
    header->link_id = link_id;
    header->geometry = *geometry;
    header->slot_stride = shape->slot_stride;
    header->frame_max = shape->frame_max;
    for (uint32_t side = 0; side < 2; side++) {
        add_section(header, RWAY_SECTION_SIDE, RWAY_HEADER_SIZE + side * RWAY_SIDE_SIZE, RWAY_SIDE_SIZE, side,
                    RWAY_SIDE_BOTH);
        add_section(header, RWAY_SECTION_RINGS, shape->rings_offset[side], shape->rings_size, side, 1 - side);
    }
    /* Release: whoever finds the magic finds the rest. */
    rway_store_release(&header->magic, RWAY_MAGIC);
}

/* Allocate what sections cover, now, so that no one meets a full host later, as a SIGBUS. */
static int allocate(int fd, const struct rway_shape *shape, bool huge, struct rway_error *error)
{
    if (ftruncate(fd, (off_t)shape->region_size) != 0)
        return rway_refuse_errno(error, "ftruncate");
    if (huge) {
        if (fallocate(fd, 0, 0, (off_t)shape->region_size) == 0)
            return 0;
        return rway_refuse(error, RWAY_REFUSED_NO_HUGE, "huge pages of 2 MiB", 0, shape->region_size >> 21);
    }
    const uint64_t extents[][2] = {{0, RWAY_HEADER_SIZE + 2 * RWAY_SIDE_SIZE},
                                   {shape->rings_offset[0], shape->rings_size},
                                   {shape->rings_offset[1], shape->rings_size}};
    for (int i = 0; i < 3; i++)
        if (fallocate(fd, 0, (off_t)extents[i][0], (off_t)extents[i][1]) != 0)
            return rway_refuse_errno(error, "fallocate");
    return 0;
}

/* Both commits of a counter say the same, so that whichever a first end takes for the one in use is right. */
static void begin_account(struct rway_counts *account, struct rway_commit commits[2], const struct rway_counts *counts)
{
    *account = *counts;
    for (int i = 0; i < 2; i++)
        commits[i] = (struct rway_commit){
            .frames = counts->frames, .bytes = counts->bytes, .dropped = rway_counts_dropped(counts)};
}

static void begin_ring(struct rway_ring_control *control, const struct rway_carried *carried)
{
    struct rway_counts consumed = carried->consumed;
    consumed.drops[RWAY_DROP_RESTART] += carried->produced.frames - consumed.frames;
    consumed.frames = carried->produced.frames;
    consumed.bytes = carried->produced.bytes;
    begin_account(&control->produced, control->published, &carried->produced);
    begin_account(&control->consumed, control->released, &consumed);
    for (int i = 0; i < 2; i++) {
        control->originated[i] = carried->originated;
        control->replicated[i] = carried->replicated;
    }
}

static void begin_rings(uint8_t *memory, const struct rway_geometry *geometry, const struct rway_shape *shape,
                        const struct rway_carried *carried)
{
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t queue = 0; queue < geometry->queues; queue++) {
            uint8_t *start = memory + shape->rings_offset[side] + queue * shape->queue_size;
            begin_ring((struct rway_ring_control *)start, carried++);
        }
}

static int fill(int fd, const struct rway_geometry *geometry, const struct rway_shape *shape, uint64_t link_id,
                const struct rway_carried *carried, struct rway_error *error)
{
    /* Mapped, because hugetlbfs has no write; nobody else has the descriptor yet. */
    void *memory = mmap(NULL, shape->region_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return rway_refuse_errno(error, "mmap");
    if (carried != NULL)
        begin_rings(memory, geometry, shape, carried);
    format(memory, geometry, shape, link_id);
    munmap(memory, shape->region_size);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return rway_refuse_errno(error, "F_ADD_SEALS");
    return 0;
}

int rway_region_create(const struct rway_geometry *geometry, uint64_t link_id, uint32_t flags, struct rway_error *error)
{
    return rway_region_create_from(geometry, link_id, flags, NULL, error);
}

int rway_region_create_from(const struct rway_geometry *geometry, uint64_t link_id, uint32_t flags,
                            const struct rway_carried *carried, struct rway_error *error)
{
    struct rway_shape shape;
    bool huge = flags & RWAY_CREATE_HUGE;
    int refused = rway_geometry_shape(geometry, &shape, error);
    if (refused)
        return refused;
    int fd = memfd_create("ringway", MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
    if (fd < 0 && huge)
        return rway_refuse(error, RWAY_REFUSED_NO_HUGE, "huge pages of 2 MiB", 0, shape.region_size >> 21);
    if (fd < 0)
        return rway_refuse_errno(error, "memfd_create");
    if ((refused = allocate(fd, &shape, huge, error)) ||
        (refused = fill(fd, geometry, &shape, link_id, carried, error))) {
        close(fd);
        return refused;
    }
    return fd;
}
