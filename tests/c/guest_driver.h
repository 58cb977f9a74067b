/*
 * A guest for tests of vhost/: its memory in a memfd, a driver that can be told to do wrong, and the job that serves
 * it, run turn by turn. The link's other end is the test's own too.
 */
#ifndef GUEST_DRIVER_H
#define GUEST_DRIVER_H

#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "vhost/vhost.h"

enum { SIZE = 64, MEMORY = 1 << 20, LINK = 7, BUFFERS_AT = 0x10000, TABLES_AT = 0x8000 };
enum { TX = RWAY_VRING_TRANSMIT, RX = RWAY_VRING_RECEIVE };
#define GUEST_BASE 0x40000000ull
#define USER_BASE 0x7f0000000000ull
#define BIT(n) (1ull << (n))
#define SPLIT (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_RING_F_INDIRECT_DESC))
#define PACKED (SPLIT | BIT(VIRTIO_F_RING_PACKED))
#define OFFLOADS (BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4))

static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 256, .slot_payload = 2048, .headroom = 64};

struct guest {
    int link_fd, memory_fd, call_fd;
    struct rway_region *a, *b; /* the pump's side, and the test's */
    uint8_t *memory;
    struct rway_guest *guest;
    struct rway_job *job;
    uint64_t features;
    uint16_t avail[2]; /* split: what the driver has made available */
};

/* Where the areas of a ring begin in the guest's memory. */
static inline uint64_t ring_at(uint32_t ring, uint32_t area)
{
    return 0x1000 * (uint64_t)(3 * ring + area);
}

static inline struct rway_vring_setup setup_of(const struct guest *guest, uint32_t ring)
{
    return (struct rway_vring_setup){.desc = USER_BASE + ring_at(ring, 0),
                                     .avail = USER_BASE + ring_at(ring, 1),
                                     .used = USER_BASE + ring_at(ring, 2),
                                     .features = guest->features,
                                     .size = SIZE,
                                     .base = guest->features & BIT(VIRTIO_F_RING_PACKED) ? 0x8000 : 0};
}

static inline void start_ring(struct guest *guest, uint32_t ring)
{
    struct rway_error error;
    struct rway_vring_setup setup = setup_of(guest, ring);
    CHECK(rway_pair_start(guest->job, ring, &setup, &error) == 0, "%s", error.what);
    rway_pair_set_call(guest->job, ring, guest->call_fd);
    rway_pair_enable(guest->job, ring, 1);
}

static inline struct guest guest_new(uint64_t features)
{
    struct rway_error error;
    struct guest guest = {.features = features, .link_fd = rway_region_create(&GEOMETRY, LINK, 0, &error)};
    guest.a = rway_region_attach(guest.link_fd, &GEOMETRY, LINK, RWAY_SIDE_A, 1, &error);
    guest.b = rway_region_attach(guest.link_fd, &GEOMETRY, LINK, RWAY_SIDE_B, 1, &error);
    CHECK(guest.a != NULL && guest.b != NULL, "%s", error.what);
    guest.memory_fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(ftruncate(guest.memory_fd, MEMORY) == 0, "ftruncate");
    guest.memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, guest.memory_fd, 0);
    guest.guest = rway_guest_new();
    const struct rway_guest_region region = {.guest = GUEST_BASE, .size = MEMORY, .user = USER_BASE};
    CHECK(rway_guest_add(guest.guest, guest.memory_fd, &region, 0, &error) == 0, "%s", error.what);
    guest.call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    guest.job = rway_pair_new(rway_region_producer(guest.a, 0), rway_region_consumer(guest.a, 0),
                              rway_region_shape(guest.a)->frame_max);
    CHECK(guest.job != NULL && rway_pair_set_guest(guest.job, guest.guest) == 0, "no job");
    start_ring(&guest, RX);
    start_ring(&guest, TX);
    return guest;
}

static inline void guest_free(struct guest *guest)
{
    guest->job->free(guest->job);
    rway_guest_free(guest->guest);
    munmap(guest->memory, MEMORY);
    rway_region_detach(guest->a);
    rway_region_detach(guest->b);
    close(guest->memory_fd);
    close(guest->call_fd);
    close(guest->link_fd);
}

/* Turns until the job finds nothing to do; it must come to that. */
static inline void turns(struct guest *guest)
{
    for (int i = 0; guest->job->run(guest->job) != 0; i++)
        CHECK(i < 10000, "it never comes to rest");
}

static inline int broken(const struct guest *guest, uint32_t ring)
{
    struct rway_pair_state state;
    rway_pair_read(guest->job, &state);
    return state.broken[ring];
}

/* ---- the driver's hands: split ---- */

static inline struct vring_desc *split_desc(struct guest *guest, uint32_t ring, uint32_t i)
{
    return (struct vring_desc *)(guest->memory + ring_at(ring, 0)) + i;
}

static inline void put_desc(struct guest *guest, uint32_t ring, uint32_t i, uint64_t address, uint32_t len,
                            uint16_t flags, uint16_t next)
{
    *split_desc(guest, ring, i) = (struct vring_desc){.addr = address, .len = len, .flags = flags, .next = next};
}

static inline uint16_t *avail_words(struct guest *guest, uint32_t ring)
{
    return (uint16_t *)(guest->memory + ring_at(ring, 1));
}

static inline void set_avail(struct guest *guest, uint32_t ring, uint16_t index)
{
    guest->avail[ring] = index;
    rway_store_release(&avail_words(guest, ring)[1], index);
}

static inline void make_available(struct guest *guest, uint32_t ring, uint16_t head)
{
    avail_words(guest, ring)[2 + guest->avail[ring] % SIZE] = head;
    set_avail(guest, ring, (uint16_t)(guest->avail[ring] + 1));
}

static inline uint16_t used_index(struct guest *guest, uint32_t ring)
{
    return rway_load_acquire((uint16_t *)(guest->memory + ring_at(ring, 2)) + 1);
}

static inline struct vring_used_elem used_entry(struct guest *guest, uint32_t ring, uint32_t i)
{
    return ((struct vring_used_elem *)(guest->memory + ring_at(ring, 2) + 4))[i % SIZE];
}

/* The guest's address of buffer i, of 2048 bytes, and where it lies. */
static inline uint64_t buffer_address(uint32_t i)
{
    return GUEST_BASE + BUFFERS_AT + 2048 * (uint64_t)i;
}

static inline uint8_t *buffer(struct guest *guest, uint32_t i)
{
    return guest->memory + BUFFERS_AT + 2048 * (uint64_t)i;
}

/* Write a frame of len bytes, header included, into buffer i, its bytes counted up from seed. */
static inline void fill_buffer(struct guest *guest, uint32_t i, uint32_t len, uint8_t seed)
{
    memset(buffer(guest, i), 0, 12);
    for (uint32_t at = 12; at < len; at++)
        buffer(guest, i)[at] = (uint8_t)(seed + at - 12);
}

/* Send one good frame by descriptor i; it has to arrive. For a ring that is said to have survived something. */
static inline uint32_t peer_receive(struct guest *guest, uint8_t *bytes, uint32_t *len)
{
    static uint8_t memory[1 << 18];
    uint32_t got = rway_frames_copy_out(rway_region_consumer(guest->b, 0), memory, sizeof memory, len, 1);
    if (got && bytes)
        memcpy(bytes, memory, *len);
    return got;
}

static inline void sends_well(struct guest *guest)
{
    uint8_t bytes[4096];
    uint32_t len = 0;
    while (peer_receive(guest, NULL, &len))
        ;
    fill_buffer(guest, 60, 112, 9);
    put_desc(guest, TX, 60, buffer_address(60), 112, 0, 0);
    make_available(guest, TX, 60);
    turns(guest);
    CHECK(peer_receive(guest, bytes, &len) == 1 && len == 100 && bytes[5] == 14, "a good frame is not sent: %u", len);
}

static inline uint64_t dropped(struct guest *guest, bool produced, uint32_t cause)
{
    struct rway_snapshot snapshot;
    struct rway_ring_snapshot ring;
    struct rway_error error;
    rway_ring_publish(rway_region_producer(guest->a, 0), NULL, 0);
    rway_ring_release(rway_region_consumer(guest->a, 0));
    CHECK(rway_region_read(guest->link_fd, &snapshot, &error) == 0, "%s", error.what);
    uint32_t side = produced ? RWAY_SIDE_A : RWAY_SIDE_B;
    CHECK(rway_ring_read(guest->link_fd, &snapshot, side, 0, &ring, &error) == 0, "%s", error.what);
    return produced ? ring.produced.drops[cause] : ring.consumed.drops[cause];
}

static inline void peer_send(struct guest *guest, uint32_t len, uint8_t seed)
{
    static uint8_t bytes[65536];
    for (uint32_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)(seed + i);
    CHECK(rway_frames_copy_in(rway_region_producer(guest->b, 0), bytes, &len, 1) == 1, "the link is full");
}

#endif
