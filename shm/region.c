/* An end's hold on a region: attached, used, broken, detached. */
#define _GNU_SOURCE
#include "guard.h"
#include "ring.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_offer(const struct rway_header *header, const struct rway_geometry *offer, uint64_t link_id,
                       struct rway_error *error)
{
    const struct rway_geometry *found = &header->geometry;
    if (header->features_readable != 0)
        return rway_refuse(error, RWAY_REFUSED_FEATURE, "features_readable", header->features_readable, 0);
    if (header->link_id != link_id)
        return rway_refuse(error, RWAY_REFUSED_LINK, "link_id", header->link_id, link_id);
    if (found->queues != offer->queues)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "queues", found->queues, offer->queues);
    if (found->slot_count != offer->slot_count)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "slot_count", found->slot_count, offer->slot_count);
    if (found->slot_payload != offer->slot_payload)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "slot_payload", found->slot_payload, offer->slot_payload);
    if (found->headroom != offer->headroom)
        return rway_refuse(error, RWAY_REFUSED_GEOMETRY, "headroom", found->headroom, offer->headroom);
    return 0;
}

static struct rway_ring ring_at(struct rway_region *region, uint64_t rings_offset, uint32_t queue)
{
    const struct rway_geometry *geometry = &region->geometry;
    uint8_t *start = region->memory + rings_offset + queue * region->shape.queue_size;
    uint8_t *descs = start + sizeof(struct rway_ring_control);
    return (struct rway_ring){
        .control = (struct rway_ring_control *)start,
        .descs = (struct rway_desc *)descs,
        .slots = descs + (uint64_t)geometry->slot_count * sizeof(struct rway_desc),
        .slot_count = geometry->slot_count,
        .mask = geometry->slot_count - 1,
        .stride = region->shape.slot_stride,
        .payload = geometry->slot_payload,
        .headroom = geometry->headroom,
        .frame_max = region->shape.frame_max,
        .region = region,
    };
}

static int open_rings(struct rway_region *region, const struct rway_places *places, uint32_t side,
                      struct rway_error *error)
{
    uint32_t queues = region->geometry.queues;
    region->producers = calloc(queues, sizeof *region->producers);
    region->consumers = calloc(queues, sizeof *region->consumers);
    if (region->producers == NULL || region->consumers == NULL)
        return rway_refuse_errno(error, "calloc");
    /* Before any can be refused: what frees them closes their bells, and descriptor 0 is somebody else's. */
    const struct rway_bell none = {.wait_fd = -1, .ring_fd = -1};
    for (uint32_t queue = 0; queue < queues; queue++)
        region->producers[queue].bell = region->consumers[queue].bell = none;
    for (uint32_t queue = 0; queue < queues; queue++) {
        struct rway_ring out = ring_at(region, places->rings[side], queue);
        struct rway_ring in = ring_at(region, places->rings[1 - side], queue);
        int refused = rway_producer_resume(&region->producers[queue], out, error);
        if (!refused)
            refused = rway_consumer_resume(&region->consumers[queue], in, error);
        if (refused)
            return refused;
    }
    return 0;
}

static void free_region(struct rway_region *region)
{
    if (region->producers != NULL && region->consumers != NULL)
        for (uint32_t queue = 0; queue < region->geometry.queues; queue++) {
            rway_bell_close(&region->producers[queue].bell);
            rway_bell_close(&region->consumers[queue].bell);
            free(region->consumers[queue].cut_bytes);
        }
    free(region->producers);
    free(region->consumers);
    free(region);
}

static int check_arguments(uint64_t size, const struct rway_geometry *offer, uint32_t side, struct rway_error *error)
{
    struct rway_shape shape;
    if (side > RWAY_SIDE_B)
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "side", side, RWAY_SIDE_B);
    if (size < RWAY_HEADER_SIZE)
        return rway_refuse(error, RWAY_REFUSED_SIZE, "size of the carrier", size, RWAY_HEADER_SIZE);
    return rway_geometry_shape(offer, &shape, error);
}

/* The header's offsets were checked against the whole carrier, and not all of it need be mapped. */
static int check_mapped(const struct rway_region *region, const struct rway_places *places, struct rway_error *error)
{
    for (int side = 0; side < 2; side++) {
        uint64_t side_end = places->side[side] + RWAY_SIDE_SIZE;
        uint64_t rings_end = places->rings[side] + region->shape.rings_size;
        uint64_t end = side_end > rings_end ? side_end : rings_end;
        if (end > region->size)
            return rway_refuse(error, RWAY_REFUSED_SECTION, "end of a section", end, region->size);
    }
    return 0;
}

static uint32_t all_queues(const struct rway_region *region)
{
    return (uint32_t)(((uint64_t)1 << region->geometry.queues) - 1);
}

void rway_region_serve(struct rway_region *region, uint32_t queues)
{
    rway_write_once(&region->own->queues_served, queues & all_queues(region));
}

uint32_t rway_region_served(const struct rway_region *region)
{
    uint32_t peer_x = rway_read_once(&region->peer->queues_served) & all_queues(region);
    return peer_x != 0 ? peer_x : all_queues(region);
}

static int open_region(struct rway_region *region, uint64_t carrier_size, const struct rway_geometry *offer,
                       uint64_t link_id, uint32_t side, uint32_t incarnation, struct rway_error *error)
{
    struct rway_header header;
    struct rway_places places;
    memcpy(&header, region->memory, sizeof header);
    int refused = rway_header_check(&header, carrier_size, &region->shape, &places, error);
    if (!refused)
        refused = check_offer(&header, offer, link_id, error);
    if (!refused)
        refused = check_mapped(region, &places, error);
    if (refused)
        return refused;
    region->geometry = *offer;
    region->link_id = link_id;
    if ((refused = open_rings(region, &places, side, error)))
        return refused;
    region->own = (struct rway_side *)(region->memory + places.side[side]);
    region->peer = (const struct rway_side *)(region->memory + places.side[1 - side]);
    rway_write_once(&region->own->incarnation, incarnation);
    rway_write_once(&region->own->cause, RWAY_WHOLE);
    rway_region_serve(region, all_queues(region));
    rway_store_release(&region->own->state, RWAY_SIDE_ATTACHED);
    return 0;
}

static struct rway_region *over(void *memory, uint64_t size, uint64_t carrier_size, const struct rway_geometry *offer,
                                uint64_t link_id, uint32_t side, uint32_t incarnation, struct rway_error *error)
{
    if (check_arguments(size, offer, side, error))
        return NULL;
    struct rway_region *region = calloc(1, sizeof *region);
    if (region == NULL) {
        rway_refuse_errno(error, "calloc");
        return NULL;
    }
    region->memory = memory;
    region->size = size;
    if (rway_guard_add(region->memory, region->size, &region->broken, error) != 0) {
        free(region);
        return NULL;
    }
    int refused = open_region(region, carrier_size, offer, link_id, side, incarnation, error);
    if (!refused && rway_read_once(&region->broken) == RWAY_BROKEN_VANISHED)
        refused = rway_refuse(error, RWAY_REFUSED_SIZE, "memory that is really there", 0, size);
    if (refused) {
        rway_guard_remove(region->memory, &region->broken);
        free_region(region);
        return NULL;
    }
    return region;
}

struct rway_region *rway_region_over(void *memory, uint64_t size, const struct rway_geometry *offer, uint64_t link_id,
                                     uint32_t side, uint32_t incarnation, struct rway_error *error)
{
    return over(memory, size, size, offer, link_id, side, incarnation, error);
}

struct rway_region *rway_region_attach(int fd, const struct rway_geometry *offer, uint64_t link_id, uint32_t side,
                                       uint32_t incarnation, struct rway_error *error)
{
    struct stat status;
    struct rway_shape shape;
    if (fstat(fd, &status) != 0) {
        rway_refuse_errno(error, "fstat");
        return NULL;
    }
    if (!S_ISREG(status.st_mode)) {
        rway_refuse(error, RWAY_REFUSED_ARGUMENT, "kind of descriptor", status.st_mode & S_IFMT, S_IFREG);
        return NULL;
    }
    if (rway_geometry_shape(offer, &shape, error))
        return NULL;
    uint64_t carrier_size = (uint64_t)status.st_size;
    uint64_t size = shape.region_size;
    if (carrier_size < size) {
        rway_refuse(error, RWAY_REFUSED_SIZE, "size of the carrier", carrier_size, size);
        return NULL;
    }
    /* Sections of later releases may lie behind what the offer's geometry needs: that much is not mapped. */
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        rway_refuse_errno(error, "mmap");
        return NULL;
    }
    struct rway_region *region = over(memory, size, carrier_size, offer, link_id, side, incarnation, error);
    if (region == NULL)
        munmap(memory, size);
    else
        region->mapped = true;
    return region;
}

void rway_region_detach(struct rway_region *region)
{
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++) {
        rway_producer_show_counts(&region->producers[queue]);
        rway_consumer_show_counts(&region->consumers[queue]);
    }
    rway_write_once(&region->own->queues_served, 0);
    rway_store_release(&region->own->state, RWAY_SIDE_DETACHED);
    rway_guard_remove(region->memory, &region->broken);
    if (region->mapped)
        munmap(region->memory, region->size);
    free_region(region);
}

void rway_region_leave_to_parent(struct rway_region *region)
{
    rway_guard_remove_in_child(region->memory, &region->broken);
    if (region->mapped)
        munmap(region->memory, region->size);
    free_region(region);
}

void rway_region_break(struct rway_region *region, int cause)
{
    int whole = RWAY_WHOLE;
    if (!__atomic_compare_exchange_n(&region->broken, &whole, cause, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    rway_write_once(&region->own->cause, (uint32_t)cause);
    rway_store_release(&region->own->state, RWAY_SIDE_BROKEN);
}

int rway_region_broken(const struct rway_region *region)
{
    return rway_read_once(&region->broken);
}

const struct rway_shape *rway_region_shape(const struct rway_region *region)
{
    return &region->shape;
}

const struct rway_geometry *rway_region_geometry(const struct rway_region *region)
{
    return &region->geometry;
}

void rway_region_peer(const struct rway_region *region, struct rway_side *peer)
{
    *peer = (struct rway_side){
        .state = rway_load_acquire(&region->peer->state),
        .cause = rway_read_once(&region->peer->cause),
        .incarnation = rway_read_once(&region->peer->incarnation),
        .queues_served = rway_read_once(&region->peer->queues_served),
    };
}

struct rway_producer *rway_region_producer(struct rway_region *region, uint32_t queue)
{
    return queue < region->geometry.queues ? &region->producers[queue] : NULL;
}

struct rway_consumer *rway_region_consumer(struct rway_region *region, uint32_t queue)
{
    return queue < region->geometry.queues ? &region->consumers[queue] : NULL;
}
