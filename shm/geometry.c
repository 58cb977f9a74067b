/* What a geometry may be, what follows from it, and whether a region's header says the same. Pure functions. */
#include "ring.h"

#include <errno.h>
#include <stdio.h>

int rway_refuse(struct rway_error *error, int cause, const char *what, uint64_t found, uint64_t expected)
{
    if (error != NULL) {
        *error = (struct rway_error){.cause = cause, .found = found, .expected = expected};
        snprintf(error->what, sizeof error->what, "%s", what);
    }
    return -cause;
}

int rway_refuse_errno(struct rway_error *error, const char *what)
{
    int number = errno;
    rway_refuse(error, RWAY_REFUSED_SYSTEM, what, 0, 0);
    if (error != NULL)
        error->sys_errno = number;
    return -RWAY_REFUSED_SYSTEM;
}

static uint64_t align_up(uint64_t value, uint64_t alignment)
{
    return (value + alignment - 1) / alignment * alignment;
}

/* An odd number of lines: with a power of two the first bytes of all frames would fall into a few cache sets. */
static uint32_t stride_of(const struct rway_geometry *geometry)
{
    uint32_t lines = (geometry->headroom + geometry->slot_payload) / RWAY_LINE;
    return (lines | 1) * RWAY_LINE;
}

static int check_range(const char *what, uint32_t value, uint32_t least, uint32_t most, uint32_t step,
                       struct rway_error *error)
{
    if (value < least)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, what, value, least);
    if (value > most)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, what, value, most);
    if (value % step != 0)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, what, value, align_up(value, step));
    return 0;
}

int rway_geometry_shape(const struct rway_geometry *geometry, struct rway_shape *shape, struct rway_error *error)
{
    int refused;
    if ((refused = check_range("queues", geometry->queues, 1, RWAY_QUEUES_MAX, 1, error)) ||
        (refused = check_range("slot_count", geometry->slot_count, RWAY_SLOTS_MIN, RWAY_SLOTS_MAX, 1, error)) ||
        (refused = check_range("slot_payload", geometry->slot_payload, RWAY_PAYLOAD_MIN, RWAY_PAYLOAD_MAX, RWAY_LINE,
                               error)) ||
        (refused = check_range("headroom", geometry->headroom, RWAY_HEADROOM_MIN, RWAY_HEADROOM_MAX, RWAY_LINE, error)))
        return refused;
    if (geometry->slot_count & (geometry->slot_count - 1)) {
        uint32_t power = RWAY_SLOTS_MIN;
        while (power < geometry->slot_count)
            power *= 2;
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "slot_count", geometry->slot_count, power);
    }
    uint64_t half_ring = (uint64_t)geometry->slot_count / 2 * geometry->slot_payload;
    uint64_t slots = (uint64_t)geometry->slot_count;
    shape->slot_stride = stride_of(geometry);
    shape->frame_max = half_ring < RWAY_FRAME_MAX ? (uint32_t)half_ring : RWAY_FRAME_MAX;
    shape->queue_size = align_up(
        sizeof(struct rway_ring_control) + slots * sizeof(struct rway_desc) + slots * shape->slot_stride, 4096);
    shape->rings_size = geometry->queues * shape->queue_size;
    shape->rings_offset[0] = RWAY_RINGS_ALIGN;
    shape->rings_offset[1] = shape->rings_offset[0] + align_up(shape->rings_size, RWAY_RINGS_ALIGN);
    shape->region_size = shape->rings_offset[1] + align_up(shape->rings_size, RWAY_RINGS_ALIGN);
    shape->memory = RWAY_HEADER_SIZE + 2 * RWAY_SIDE_SIZE + 2 * shape->rings_size;
    return 0;
}

static int check_geometry(const struct rway_header *header, const struct rway_shape *shape, struct rway_error *error)
{
    if (header->slot_stride != shape->slot_stride)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "slot_stride", header->slot_stride, shape->slot_stride);
    if (header->frame_max != shape->frame_max)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "frame_max", header->frame_max, shape->frame_max);
    if (header->region_size < shape->memory || header->region_size > ((uint64_t)1 << 40))
        return rway_refuse(error, RWAY_REFUSED_SIZE, "region_size", header->region_size, shape->region_size);
    return 0;
}

/* The place of a known section, found once, and what it must look like. Unknown kinds are skipped. */
static int place_section(const struct rway_section *section, const struct rway_shape *shape, struct rway_places *places,
                         struct rway_error *error)
{
    uint64_t *place;
    uint64_t length;
    if (section->kind == RWAY_SECTION_SIDE || section->kind == RWAY_SECTION_RINGS) {
        if (section->writer > RWAY_SIDE_B)
            return rway_refuse(error, RWAY_REFUSED_SECTION, "writer of a section", section->writer, RWAY_SIDE_B);
        bool rings = section->kind == RWAY_SECTION_RINGS;
        uint32_t reader = rings ? 1 - section->writer : RWAY_SIDE_BOTH;
        if (section->reader != reader)
            return rway_refuse(error, RWAY_REFUSED_SECTION, "reader of a section", section->reader, reader);
        place = rings ? &places->rings[section->writer] : &places->side[section->writer];
        length = rings ? shape->rings_size : RWAY_SIDE_SIZE;
    } else {
        return 0;
    }
    if (section->flags != 0)
        return rway_refuse(error, RWAY_REFUSED_SECTION, "flags of a section", section->flags, 0);
    if (section->length != length)
        return rway_refuse(error, RWAY_REFUSED_SECTION, "length of a section", section->length, length);
    if (*place != 0)
        return rway_refuse(error, RWAY_REFUSED_SECTION, "a section that is there twice", section->offset, *place);
    *place = section->offset;
    return 0;
}

static int check_bounds(const struct rway_header *header, uint32_t at, struct rway_error *error)
{
    const struct rway_section *section = &header->sections[at];
    uint64_t end;
    if (section->offset % 4096 != 0 || section->offset < RWAY_HEADER_SIZE)
        return rway_refuse(error, RWAY_REFUSED_SECTION, "offset of a section", section->offset,
                           align_up(section->offset, 4096));
    if (section->length == 0 || __builtin_add_overflow(section->offset, section->length, &end) ||
        end > header->region_size)
        return rway_refuse(error, RWAY_REFUSED_SECTION, "end of a section", section->offset + section->length,
                           header->region_size);
    for (uint32_t i = 0; i < at; i++) {
        const struct rway_section *other = &header->sections[i];
        if (section->offset < other->offset + other->length && other->offset < end)
            return rway_refuse(error, RWAY_REFUSED_SECTION, "sections that overlap", section->offset, other->offset);
    }
    return 0;
}

int rway_header_check(const struct rway_header *header, uint64_t carrier_size, struct rway_shape *shape,
                      struct rway_places *places, struct rway_error *error)
{
    static const char *const MISSING[] = {"section of side a", "section of side b", "rings of side a",
                                          "rings of side b"};
    int refused;
    *places = (struct rway_places){0};
    if (header->magic != RWAY_MAGIC)
        return rway_refuse(error, RWAY_REFUSED_MAGIC, "magic", header->magic, RWAY_MAGIC);
    if (header->major != RWAY_LAYOUT_MAJOR)
        return rway_refuse(error, RWAY_REFUSED_VERSION, "major version", header->major, RWAY_LAYOUT_MAJOR);
    if (header->minor != RWAY_LAYOUT_MINOR)
        return rway_refuse(error, RWAY_REFUSED_VERSION, "minor version", header->minor, RWAY_LAYOUT_MINOR);
    if (header->features_required != 0)
        return rway_refuse(error, RWAY_REFUSED_FEATURE, "features_required", header->features_required, 0);
    if (header->header_size != RWAY_HEADER_SIZE)
        return rway_refuse(error, RWAY_REFUSED_SIZE, "header_size", header->header_size, RWAY_HEADER_SIZE);
    if (header->region_size > carrier_size)
        return rway_refuse(error, RWAY_REFUSED_SIZE, "region_size", header->region_size, carrier_size);
    if ((refused = rway_geometry_shape(&header->geometry, shape, error)) ||
        (refused = check_geometry(header, shape, error)))
        return refused;
    if (header->section_count > RWAY_SECTIONS_MAX)
        return rway_refuse(error, RWAY_REFUSED_SECTION, "section_count", header->section_count, RWAY_SECTIONS_MAX);
    for (uint32_t i = 0; i < header->section_count; i++)
        if ((refused = check_bounds(header, i, error)) ||
            (refused = place_section(&header->sections[i], shape, places, error)))
            return refused;
    const uint64_t found[] = {places->side[0], places->side[1], places->rings[0], places->rings[1]};
    for (int i = 0; i < 4; i++)
        if (found[i] == 0)
            return rway_refuse(error, RWAY_REFUSED_SECTION, MISSING[i], 0, 1);
    return 0;
}
