/*
 * A guest's memory: what its front end hands over, mapped once, and looked up by address.
 *
 * The descriptors come from a process that runs for a tenant. So their type and size are looked at, sums are checked
 * against wrapping, and every mapping is under the SIGBUS guard (shm/guard.c): a file that nobody has sealed can be
 * shortened while we copy.
 */
#define _GNU_SOURCE
#include "vhost.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/guard.h"

struct rway_guest *rway_guest_new(void)
{
    return calloc(1, sizeof(struct rway_guest));
}

uint32_t rway_guest_count(const struct rway_guest *guest)
{
    return guest->count;
}

int rway_guest_vanished(const struct rway_guest *guest)
{
    return rway_read_once(&guest->broken) != RWAY_WHOLE;
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a - b < b_size || b - a < a_size;
}

/* Without these checks an address could belong to two regions, or a sum wrap round to one that lies before it. */
static int check_region(const struct rway_guest *guest, const struct rway_guest_region *region,
                        struct rway_error *error)
{
    uint64_t end;
    if (guest->count == RWAY_GUEST_REGIONS_MAX)
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "regions", guest->count + 1, RWAY_GUEST_REGIONS_MAX);
    if (region->size == 0)
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "size of a region", 0, 1);
    if (__builtin_add_overflow(region->guest, region->size, &end))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "guest address, with its size", region->guest, UINT64_MAX);
    if (__builtin_add_overflow(region->user, region->size, &end))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "user address, with its size", region->user, UINT64_MAX);
    for (uint32_t i = 0; i < guest->count; i++) {
        const struct rway_guest_region *other = &guest->mappings[i].region;
        if (overlap(region->guest, region->size, other->guest, other->size))
            return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "guest address, in two regions", region->guest,
                               other->guest);
        if (overlap(region->user, region->size, other->user, other->size))
            return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "user address, in two regions", region->user, other->user);
    }
    return 0;
}

/* Is it memory, long enough, and sealed if it has to be? */
static int check_file(int fd, const struct stat *status, const struct rway_guest_region *region, int sealed,
                      struct rway_error *error)
{
    uint64_t end;
    if (!S_ISREG(status->st_mode))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "kind of a region's descriptor", status->st_mode & S_IFMT,
                           S_IFREG);
    if (__builtin_add_overflow(region->offset, region->size, &end) || end > (uint64_t)status->st_size)
        return rway_refuse(error, RWAY_REFUSED_SIZE, "end of a region in its file", region->offset + region->size,
                           (uint64_t)status->st_size);
    int seals = fcntl(fd, F_GET_SEALS);
    if (sealed && (seals < 0 || !(seals & F_SEAL_SHRINK)))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "seals of a region", seals < 0 ? 0 : (uint64_t)seals,
                           F_SEAL_SHRINK);
    return 0;
}

/* hugetlbfs says its pages' size there; of other files it is 4096 or more. */
static uint64_t page_size_of(const struct stat *status)
{
    uint64_t usual = (uint64_t)sysconf(_SC_PAGESIZE), said = (uint64_t)status->st_blksize;
    return said > usual && (said & (said - 1)) == 0 ? said : usual;
}

static int map_region(struct rway_guest *guest, int fd, const struct stat *status,
                      const struct rway_guest_region *region, struct rway_error *error)
{
    uint64_t page_size = page_size_of(status), into = region->offset & (page_size - 1), size;
    if (__builtin_add_overflow(region->size, into + page_size - 1, &size))
        return rway_refuse(error, RWAY_REFUSED_SIZE, "size of a region", region->size, UINT64_MAX);
    size &= ~(page_size - 1);
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(region->offset - into));
    if (map == MAP_FAILED)
        return rway_refuse_errno(error, "mmap of a region");
    madvise(map, size, MADV_DONTDUMP); /* a core of ours holds no guest's memory */
    int refused = rway_guard_add(map, size, &guest->broken, error);
    if (refused) {
        munmap(map, size);
        return refused;
    }
    guest->mappings[guest->count++] = (struct rway_guest_mapping){
        .region = *region,
        .at = (uint8_t *)map + into,
        .map = map,
        .map_size = size,
        .device = status->st_dev,
        .inode = status->st_ino,
    };
    return 0;
}

/* QEMU 7.2 adds each region once for every queue pair. */
static bool is_there(const struct rway_guest *guest, const struct stat *status, const struct rway_guest_region *region)
{
    for (uint32_t i = 0; i < guest->count; i++) {
        const struct rway_guest_mapping *found = &guest->mappings[i];
        if (found->region.guest == region->guest && found->region.size == region->size &&
            found->region.user == region->user && found->region.offset == region->offset &&
            found->device == status->st_dev && found->inode == status->st_ino)
            return true;
    }
    return false;
}

int rway_guest_add(struct rway_guest *guest, int fd, const struct rway_guest_region *region, int sealed,
                   struct rway_error *error)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return rway_refuse_errno(error, "fstat of a region");
    if (is_there(guest, &status, region))
        return 0;
    int refused = check_region(guest, region, error);
    if (!refused)
        refused = check_file(fd, &status, region, sealed, error);
    return refused ? refused : map_region(guest, fd, &status, region, error);
}

static void unmap(struct rway_guest *guest, struct rway_guest_mapping *mapping)
{
    rway_guard_remove(mapping->map, &guest->broken);
    munmap(mapping->map, mapping->map_size);
}

void rway_guest_remove(struct rway_guest *guest, const struct rway_guest_region *region)
{
    for (uint32_t i = 0; i < guest->count; i++) {
        const struct rway_guest_region *found = &guest->mappings[i].region;
        if (found->guest != region->guest || found->size != region->size || found->user != region->user)
            continue;
        unmap(guest, &guest->mappings[i]);
        guest->mappings[i] = guest->mappings[--guest->count];
        return;
    }
}

void rway_guest_free(struct rway_guest *guest)
{
    for (uint32_t i = 0; i < guest->count; i++)
        unmap(guest, &guest->mappings[i]);
    free(guest);
}

void rway_guest_leave_to_parent(struct rway_guest *guest)
{
    for (uint32_t i = 0; i < guest->count; i++) {
        rway_guard_remove_in_child(guest->mappings[i].map, &guest->broken);
        munmap(guest->mappings[i].map, guest->mappings[i].map_size);
    }
    free(guest);
}

uint8_t *rway_guest_user(const struct rway_guest *guest, uint64_t address, uint64_t len)
{
    for (uint32_t i = 0; i < guest->count; i++) {
        const struct rway_guest_mapping *mapping = &guest->mappings[i];
        uint64_t into = address - mapping->region.user;
        if (into < mapping->region.size && len <= mapping->region.size - into)
            return mapping->at + into;
    }
    return NULL;
}
