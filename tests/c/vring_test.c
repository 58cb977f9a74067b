/*
 * Rings of a guest that does not keep to the rules, and of one that does: rows R1 to R21 and P1 to P4 of "bad input" in
 * vhost/README.md. What cannot be a buffer is given back and counted, and the ring goes on; a ring that contradicts
 * itself is broken, by name; nothing is touched that is not the guest's.
 */
#define _GNU_SOURCE
#include "guest_driver.h"

#include <pthread.h>
#include <stdlib.h>

#include "expect.h"

/* ---- rings that contradict themselves: broken ---- */

static void expect_broken(struct guest *guest, int cause)
{
    turns(guest);
    EXPECT(broken(guest, TX) == cause);
    uint16_t shown = used_index(guest, TX);
    turns(guest);
    EXPECT(used_index(guest, TX) == shown && broken(guest, RX) == RWAY_VRING_WHOLE);
    guest_free(guest);
}

static void r1_more_made_available_than_the_ring_holds(void)
{
    struct guest guest = guest_new(SPLIT);
    set_avail(&guest, TX, SIZE + 1);
    expect_broken(&guest, RWAY_VRING_AVAIL);
}

static void r2_an_available_index_that_goes_back(void)
{
    struct guest guest = guest_new(SPLIT);
    sends_well(&guest);
    set_avail(&guest, TX, 0);
    expect_broken(&guest, RWAY_VRING_AVAIL);
}

static void r3_an_available_entry_that_names_no_descriptor(void)
{
    struct guest guest = guest_new(SPLIT);
    make_available(&guest, TX, SIZE);
    expect_broken(&guest, RWAY_VRING_HEAD);
}

static void r4_chains_that_leave_the_table_or_go_round(void)
{
    const uint16_t nexts[][2] = {{SIZE, RWAY_VRING_NEXT}, {0xffff, RWAY_VRING_NEXT}, {0, RWAY_VRING_CHAIN}};
    for (size_t i = 0; i < 3; i++) {
        struct guest guest = guest_new(SPLIT);
        put_desc(&guest, TX, 0, buffer_address(0), 20, VRING_DESC_F_NEXT, nexts[i][0]);
        make_available(&guest, TX, 0);
        expect_broken(&guest, nexts[i][1]);
    }
    struct guest two = guest_new(SPLIT), all = guest_new(SPLIT);
    put_desc(&two, TX, 0, buffer_address(0), 20, VRING_DESC_F_NEXT, 1);
    put_desc(&two, TX, 1, buffer_address(0), 20, VRING_DESC_F_NEXT, 0);
    make_available(&two, TX, 0);
    expect_broken(&two, RWAY_VRING_CHAIN);
    for (uint16_t i = 0; i < SIZE; i++)
        put_desc(&all, TX, i, buffer_address(0), 20, VRING_DESC_F_NEXT, (uint16_t)((i + 1) % SIZE));
    make_available(&all, TX, 0);
    expect_broken(&all, RWAY_VRING_CHAIN);
}

static void r6_indirect_tables_that_cannot_be(void)
{
    const struct {
        uint64_t address, features;
        uint32_t len;
        uint16_t flags;
    } bad[] = {
        {GUEST_BASE + TABLES_AT, SPLIT, 0, VRING_DESC_F_INDIRECT},
        {GUEST_BASE + TABLES_AT, SPLIT, 17, VRING_DESC_F_INDIRECT},
        {GUEST_BASE + TABLES_AT, SPLIT, 16 * (RWAY_CHAIN_MAX + 1), VRING_DESC_F_INDIRECT},
        {GUEST_BASE + TABLES_AT, SPLIT, 32, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT},
        {GUEST_BASE + TABLES_AT + 4, SPLIT, 32, VRING_DESC_F_INDIRECT},
        {GUEST_BASE + MEMORY, SPLIT, 32, VRING_DESC_F_INDIRECT},
        {UINT64_MAX - 15, SPLIT, 32, VRING_DESC_F_INDIRECT},
        {GUEST_BASE + TABLES_AT, SPLIT & ~BIT(VIRTIO_RING_F_INDIRECT_DESC), 32, VRING_DESC_F_INDIRECT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct guest guest = guest_new(bad[i].features);
        put_desc(&guest, TX, 0, bad[i].address, bad[i].len, bad[i].flags, 0);
        make_available(&guest, TX, 0);
        expect_broken(&guest, RWAY_VRING_INDIRECT);
    }
    struct guest nested = guest_new(SPLIT);
    struct vring_desc *table = (struct vring_desc *)(nested.memory + TABLES_AT);
    table[0] = (struct vring_desc){.addr = GUEST_BASE + TABLES_AT, .len = 16, .flags = VRING_DESC_F_INDIRECT};
    put_desc(&nested, TX, 0, GUEST_BASE + TABLES_AT, 16, VRING_DESC_F_INDIRECT, 0);
    make_available(&nested, TX, 0);
    expect_broken(&nested, RWAY_VRING_INDIRECT);
    struct guest beyond = guest_new(SPLIT);
    table = (struct vring_desc *)(beyond.memory + TABLES_AT);
    table[0] = (struct vring_desc){.addr = buffer_address(0), .len = 20, .flags = VRING_DESC_F_NEXT, .next = 2};
    put_desc(&beyond, TX, 0, GUEST_BASE + TABLES_AT, 32, VRING_DESC_F_INDIRECT, 0);
    make_available(&beyond, TX, 0);
    expect_broken(&beyond, RWAY_VRING_NEXT);
    struct guest circle = guest_new(SPLIT);
    table = (struct vring_desc *)(circle.memory + TABLES_AT);
    table[0] = (struct vring_desc){.addr = buffer_address(0), .len = 20, .flags = VRING_DESC_F_NEXT, .next = 0};
    put_desc(&circle, TX, 0, GUEST_BASE + TABLES_AT, 32, VRING_DESC_F_INDIRECT, 0);
    make_available(&circle, TX, 0);
    expect_broken(&circle, RWAY_VRING_CHAIN);
}

/* ---- packed ---- */

static struct vring_packed_desc *packed_desc(struct guest *guest, uint32_t ring, uint32_t i)
{
    return (struct vring_packed_desc *)(guest->memory + ring_at(ring, 0)) + i;
}

enum { AVAIL_1 = 1 << VRING_PACKED_DESC_F_AVAIL, USED_1 = 1 << VRING_PACKED_DESC_F_USED };

static void put_packed(struct guest *guest, uint32_t ring, uint32_t i, uint32_t len, uint16_t id, uint16_t flags)
{
    *packed_desc(guest, ring, i) =
        (struct vring_packed_desc){.addr = buffer_address(i), .len = len, .id = id, .flags = flags};
}

static void r20_packed_chains_that_lie(void)
{
    struct guest hole = guest_new(PACKED), id = guest_new(PACKED), all = guest_new(PACKED), used = guest_new(PACKED);
    put_packed(&hole, TX, 0, 20, 0, AVAIL_1 | VRING_DESC_F_NEXT);
    expect_broken(&hole, RWAY_VRING_WRAP);
    put_packed(&id, TX, 0, 112, SIZE, AVAIL_1);
    expect_broken(&id, RWAY_VRING_HEAD);
    for (uint16_t i = 0; i < SIZE; i++)
        put_packed(&all, TX, i, 20, i, AVAIL_1 | VRING_DESC_F_NEXT);
    expect_broken(&all, RWAY_VRING_CHAIN);
    put_packed(&used, TX, 0, 112, 0, AVAIL_1 | USED_1); /* says that we have used it: there is nothing to fetch */
    expect_broken(&used, RWAY_VRING_WHOLE);
}

static void packed_rings_go_round_and_give_back_in_order(void)
{
    struct guest guest = guest_new(PACKED);
    uint8_t bytes[4096];
    uint32_t len;
    for (uint32_t sent = 0; sent < 5 * SIZE; sent++) {
        uint32_t i = sent % SIZE;
        bool lap = sent / SIZE % 2 == 0;
        fill_buffer(&guest, i, 112, (uint8_t)sent);
        put_packed(&guest, TX, i, 112, (uint16_t)i, lap ? AVAIL_1 : USED_1);
        turns(&guest);
        CHECK(peer_receive(&guest, bytes, &len) == 1 && len == 100, "frame %u", sent);
        CHECK(bytes[3] == (uint8_t)(sent + 3), "frame %u has %u", sent, bytes[3]);
        uint16_t flags = packed_desc(&guest, TX, i)->flags;
        CHECK((flags & (AVAIL_1 | USED_1)) == (lap ? AVAIL_1 | USED_1 : 0), "flags %x of %u", flags, sent);
    }
    EXPECT(rway_pair_stop(guest.job, TX) == (0u | 0u << 15) + (0u << 16)); /* five laps: the wrap counter is 0 again */
    guest_free(&guest);
}

/* ---- buffers that cannot be used: given back, and the ring goes on ---- */

static void expect_drop(struct guest *guest, uint32_t cause)
{
    uint16_t before = used_index(guest, TX);
    make_available(guest, TX, 0);
    turns(guest);
    EXPECT(broken(guest, TX) == RWAY_VRING_WHOLE && used_index(guest, TX) == (uint16_t)(before + 1));
    EXPECT(used_entry(guest, TX, before).id == 0 && used_entry(guest, TX, before).len == 0);
    EXPECT(dropped(guest, true, cause) == 1);
    sends_well(guest);
    guest_free(guest);
}

static void r5_r9_r11_memory_that_is_not_the_guests(void)
{
    const struct {
        uint64_t address;
        uint32_t len;
    } bad[] = {
        {0, 112},
        {GUEST_BASE - 1, 112},
        {GUEST_BASE + MEMORY, 112},
        {GUEST_BASE + MEMORY - 100, 101},
        {GUEST_BASE, 0xffffffff},
        {UINT64_MAX - 50, 112},
        {USER_BASE + BUFFERS_AT, 112},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct guest guest = guest_new(SPLIT);
        put_desc(&guest, TX, 0, bad[i].address, bad[i].len, 0, 0);
        expect_drop(&guest, RWAY_DROP_MALFORMED);
    }
    struct guest long_one = guest_new(SPLIT);
    for (uint16_t i = 0; i < 50; i++)
        put_desc(&long_one, TX, i, GUEST_BASE, 0xffffffff, i < 49 ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1));
    expect_drop(&long_one, RWAY_DROP_MALFORMED);
}

static void r10_p4_nothing_but_empty_pieces(void)
{
    struct guest guest = guest_new(SPLIT);
    put_desc(&guest, TX, 0, 1, 0, VRING_DESC_F_NEXT, 1);
    put_desc(&guest, TX, 1, UINT64_MAX, 0, 0, 0);
    expect_drop(&guest, RWAY_DROP_RUNT);
}

static void r12_a_transmit_buffer_that_is_to_be_written(void)
{
    struct guest guest = guest_new(SPLIT), mixed = guest_new(SPLIT);
    put_desc(&guest, TX, 0, buffer_address(0), 112, VRING_DESC_F_WRITE, 0);
    expect_drop(&guest, RWAY_DROP_MALFORMED);
    put_desc(&mixed, TX, 0, buffer_address(0), 112, VRING_DESC_F_NEXT, 1);
    put_desc(&mixed, TX, 1, buffer_address(1), 112, VRING_DESC_F_WRITE, 0);
    expect_drop(&mixed, RWAY_DROP_MALFORMED);
}

static void r13_p3_frames_that_are_too_short_or_too_long(void)
{
    for (uint32_t len = 1; len <= 25; len++) {
        struct guest guest = guest_new(SPLIT);
        put_desc(&guest, TX, 0, buffer_address(0), len, 0, 0);
        expect_drop(&guest, RWAY_DROP_RUNT);
    }
    struct guest guest = guest_new(SPLIT);
    put_desc(&guest, TX, 0, GUEST_BASE, RWAY_FRAME_MAX + 13, 0, 0);
    expect_drop(&guest, RWAY_DROP_OVERSIZE);
}

static void r14_a_header_in_twelve_pieces(void)
{
    struct guest guest = guest_new(SPLIT);
    uint8_t bytes[4096];
    uint32_t len;
    fill_buffer(&guest, 0, 112, 77);
    for (uint16_t i = 0; i < 12; i++)
        put_desc(&guest, TX, i, buffer_address(0) + i, 1, VRING_DESC_F_NEXT, (uint16_t)(i + 1));
    put_desc(&guest, TX, 12, buffer_address(0) + 12, 100, 0, 0);
    make_available(&guest, TX, 0);
    turns(&guest);
    EXPECT(peer_receive(&guest, bytes, &len) == 1 && len == 100 && bytes[0] == 77 && bytes[99] == 176);
    guest_free(&guest);
}

static void p1_p2_offload_data_that_no_frame_can_have(void)
{
    const struct virtio_net_hdr bad[] = {
        {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 99, .csum_offset = 0},
        {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 65},
        {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 0xffff, .csum_offset = 0xffff},
        {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 0, .csum_offset = 6},
        {.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 40},
        {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .csum_start = 34, .csum_offset = 16, .gso_size = 0},
        {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV6, .csum_start = 34, .csum_offset = 16, .gso_size = 40},
        {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_UDP, .csum_start = 34, .csum_offset = 6, .gso_size = 40},
        {.flags = 1, .gso_type = 0x7f, .csum_start = 34, .csum_offset = 16, .gso_size = 40},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct guest guest = guest_new(SPLIT | OFFLOADS);
        fill_buffer(&guest, 0, 112, 0);
        memcpy(buffer(&guest, 0), &bad[i], sizeof bad[i]);
        put_desc(&guest, TX, 0, buffer_address(0), 112, 0, 0);
        expect_drop(&guest, RWAY_DROP_OFFLOAD);
    }
    struct guest guest = guest_new(SPLIT);
    const struct virtio_net_hdr good = {.flags = 1, .csum_start = 34, .csum_offset = 6};
    fill_buffer(&guest, 0, 112, 0);
    memcpy(buffer(&guest, 0), &good, sizeof good);
    put_desc(&guest, TX, 0, buffer_address(0), 112, 0, 0);
    expect_drop(&guest, RWAY_DROP_OFFLOAD); /* not negotiated */
}

/* ---- receive ---- */

/* Post buffer i, of len bytes, as descriptor i. */
static void post(struct guest *guest, uint16_t i, uint32_t len, uint16_t flags)
{
    put_desc(guest, RX, i, buffer_address(i), len, flags, 0);
    make_available(guest, RX, i);
}

static void frames_come_in_whole_and_over_several_buffers(void)
{
    struct guest guest = guest_new(SPLIT);
    struct virtio_net_hdr_mrg_rxbuf header;
    peer_send(&guest, 300, 1);
    turns(&guest);
    EXPECT(used_index(&guest, RX) == 0); /* it waits for a buffer */
    for (uint16_t i = 0; i < 4; i++)
        post(&guest, i, 112, VRING_DESC_F_WRITE);
    turns(&guest);
    EXPECT(used_index(&guest, RX) == 3 && used_entry(&guest, RX, 2).len == 312 - 224);
    memcpy(&header, buffer(&guest, 0), sizeof header);
    EXPECT(header.num_buffers == 3 && header.hdr.flags == 0 && buffer(&guest, 0)[12] == 1);
    EXPECT(buffer(&guest, 1)[0] == 101 && buffer(&guest, 2)[87] == (uint8_t)(1 + 299));
    EXPECT(buffer(&guest, 2)[88] == 0);
    guest_free(&guest);
}

static void r12_r15_receive_buffers_that_can_hold_nothing(void)
{
    struct guest guest = guest_new(SPLIT);
    peer_send(&guest, 300, 1);
    post(&guest, 0, 1, VRING_DESC_F_WRITE);
    post(&guest, 1, 11, VRING_DESC_F_WRITE);
    post(&guest, 2, 2048, 0);
    put_desc(&guest, RX, 3, GUEST_BASE + MEMORY - 10, 2048, VRING_DESC_F_WRITE, 0);
    make_available(&guest, RX, 3);
    post(&guest, 4, 200, VRING_DESC_F_WRITE);
    post(&guest, 5, 0, VRING_DESC_F_WRITE); /* in the middle of a frame: the one before goes back too */
    post(&guest, 6, 2048, VRING_DESC_F_WRITE);
    turns(&guest);
    EXPECT(broken(&guest, RX) == RWAY_VRING_WHOLE && used_index(&guest, RX) == 7);
    for (uint32_t i = 0; i < 6; i++)
        EXPECT(used_entry(&guest, RX, i).id == i && used_entry(&guest, RX, i).len == 0);
    EXPECT(used_entry(&guest, RX, 6).len == 312 && buffer(&guest, 6)[12] == 1);
    guest_free(&guest);
}

static void r16_a_ring_that_holds_less_than_a_frame(void)
{
    struct guest guest = guest_new(SPLIT);
    peer_send(&guest, 4000, 1);
    peer_send(&guest, 60, 2);
    for (uint16_t i = 0; i < SIZE; i++)
        post(&guest, i, 20, VRING_DESC_F_WRITE);
    turns(&guest);
    EXPECT(dropped(&guest, false, RWAY_DROP_SINK) == 1 && used_index(&guest, RX) == 4); /* 72 bytes in four of 20 */
    guest_free(&guest);
}

static void without_merging_a_frame_too_long_for_its_buffer_is_dropped(void)
{
    struct guest guest = guest_new(BIT(VIRTIO_F_VERSION_1));
    post(&guest, 0, 200, VRING_DESC_F_WRITE);
    peer_send(&guest, 300, 1);
    peer_send(&guest, 100, 3);
    turns(&guest);
    EXPECT(dropped(&guest, false, RWAY_DROP_SINK) == 1 && used_index(&guest, RX) == 1);
    EXPECT(used_entry(&guest, RX, 0).len == 112 && buffer(&guest, 0)[12] == 3 && buffer(&guest, 0)[10] == 1);
    guest_free(&guest);
}

static void an_old_guest_has_a_header_of_ten_bytes(void)
{
    struct guest guest = guest_new(0);
    uint8_t bytes[4096];
    uint32_t len;
    post(&guest, 0, 200, VRING_DESC_F_WRITE);
    peer_send(&guest, 100, 3);
    fill_buffer(&guest, 5, 110, 50);
    put_desc(&guest, TX, 5, buffer_address(5), 110, 0, 0);
    make_available(&guest, TX, 5);
    turns(&guest);
    EXPECT(used_entry(&guest, RX, 0).len == 110 && buffer(&guest, 0)[10] == 3);
    EXPECT(peer_receive(&guest, bytes, &len) == 1 && len == 100 && bytes[2] == 50);
    guest_free(&guest);
}

static void r17_r18_r21_buffers_over_the_rings_themselves(void)
{
    struct guest guest = guest_new(SPLIT);
    for (uint16_t i = 0; i < 3; i++) {
        put_desc(&guest, RX, i, GUEST_BASE + ring_at(RX, i), 2048, VRING_DESC_F_WRITE, 0);
        make_available(&guest, RX, i);
    }
    for (uint8_t i = 0; i < 3; i++)
        peer_send(&guest, 1500, i);
    for (uint32_t i = 0; i < 20; i++)
        guest.job->run(guest.job); /* what it makes of its own ring is its business; ours is to survive it */
    /* And our words in the transmit ring: they are never read back. */
    memset(guest.memory + ring_at(TX, 2), 0xff, 0x1000);
    put_desc(&guest, TX, 60, buffer_address(60), 112, 0, 0);
    make_available(&guest, TX, 60);
    make_available(&guest, TX, 60); /* the same buffer twice */
    turns(&guest);
    EXPECT(broken(&guest, TX) == RWAY_VRING_WHOLE && used_index(&guest, TX) == 2);
    guest_free(&guest);
}

/* ---- notification ---- */

static uint64_t calls(struct guest *guest)
{
    uint64_t count = 0;
    return read(guest->call_fd, &count, sizeof count) == sizeof count ? count : 0;
}

static void r19_notifications_follow_what_the_guest_asks_for(void)
{
    struct guest flags = guest_new(SPLIT), event = guest_new(SPLIT | BIT(VIRTIO_RING_F_EVENT_IDX));
    sends_well(&flags);
    EXPECT(calls(&flags) == 1);
    avail_words(&flags, TX)[0] = VRING_AVAIL_F_NO_INTERRUPT;
    sends_well(&flags);
    EXPECT(calls(&flags) == 0);
    guest_free(&flags);
    avail_words(&event, TX)[2 + SIZE] = 1; /* used_event: when a second one is used */
    sends_well(&event);
    EXPECT(calls(&event) == 0);
    sends_well(&event);
    EXPECT(calls(&event) == 1);
    avail_words(&event, TX)[2 + SIZE] = 0xabcd;
    sends_well(&event);
    EXPECT(calls(&event) == 0);
    guest_free(&event);
}

static void v30_a_call_that_is_never_read(void)
{
    struct guest guest = guest_new(SPLIT);
    uint64_t full = UINT64_MAX - 1;
    CHECK(write(guest.call_fd, &full, sizeof full) == sizeof full, "write");
    sends_well(&guest);
    sends_well(&guest);
    guest_free(&guest);
}

/* ---- memory ---- */

static void v20_v21_v24_regions_that_cannot_be(void)
{
    struct guest guest = guest_new(SPLIT);
    const struct rway_guest_region bad[] = {
        {.guest = 0, .size = 0, .user = 0},
        {.guest = UINT64_MAX - 4095, .size = 8192, .user = 0},
        {.guest = 0, .size = 8192, .user = UINT64_MAX - 4095},
        {.guest = GUEST_BASE + MEMORY - 4096, .size = 8192, .user = 0},
        {.guest = 0, .size = 8192, .user = USER_BASE + MEMORY - 4096},
        {.guest = 0, .size = 8192, .user = 0, .offset = MEMORY - 4096},
        {.guest = 0, .size = 8192, .user = 0, .offset = UINT64_MAX - 4095},
    };
    struct rway_error error;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT(rway_guest_add(guest.guest, guest.memory_fd, &bad[i], 0, &error) < 0);
    const struct rway_guest_region good = {.guest = 0, .size = 8192, .user = 0};
    int ends[2];
    CHECK(pipe(ends) == 0, "pipe");
    EXPECT(rway_guest_add(guest.guest, ends[0], &good, 0, &error) < 0);
    EXPECT(rway_guest_add(guest.guest, guest.memory_fd, &good, 1, &error) < 0); /* not sealed */
    EXPECT(rway_guest_add(guest.guest, guest.memory_fd, &good, 0, &error) == 0);
    EXPECT(rway_guest_add(guest.guest, guest.memory_fd, &good, 0, &error) == 0); /* it is there */
    EXPECT(rway_guest_add(guest.guest, guest.link_fd, &good, 0, &error) < 0);    /* another file */
    EXPECT(rway_guest_count(guest.guest) == 2);
    rway_guest_remove(guest.guest, &good);
    rway_guest_remove(guest.guest, &good);
    EXPECT(rway_guest_count(guest.guest) == 1);
    close(ends[0]);
    close(ends[1]);
    sends_well(&guest);
    guest_free(&guest);
}

static void v14_v17_v18_v19_rings_that_cannot_be(void)
{
    struct guest guest = guest_new(SPLIT);
    struct rway_vring_setup good = setup_of(&guest, TX);
    struct rway_error error;
    rway_pair_stop(guest.job, TX);
#define REFUSED(change)                                             \
    do {                                                            \
        struct rway_vring_setup setup = good;                       \
        change;                                                     \
        EXPECT(rway_pair_start(guest.job, TX, &setup, &error) < 0); \
    } while (0)
    REFUSED(setup.size = 0);
    REFUSED(setup.size = 3);
    REFUSED(setup.size = 65536);
    REFUSED(setup.base = 65536);
    REFUSED(setup.desc += 8);
    REFUSED(setup.avail += 1);
    REFUSED(setup.used += 2);
    REFUSED(setup.desc = USER_BASE + MEMORY - 16);
    REFUSED(setup.used = UINT64_MAX - 3);
    REFUSED(setup.avail = setup.desc + 16);
    REFUSED(setup.used = setup.desc);
    REFUSED((setup.features |= BIT(VIRTIO_F_RING_PACKED), setup.base = SIZE));
    EXPECT(rway_pair_start(guest.job, 2, &good, &error) < 0);
    EXPECT(rway_pair_start(guest.job, TX, &good, &error) == 0);
    EXPECT(rway_pair_start(guest.job, TX, &good, &error) < 0); /* it runs */
    guest_free(&guest);
}

static void v25_memory_that_is_taken_away_breaks_this_guest_alone(void)
{
    struct guest guest = guest_new(SPLIT), other = guest_new(SPLIT);
    peer_send(&guest, 300, 1);
    post(&guest, 0, 2048, VRING_DESC_F_WRITE);
    CHECK(ftruncate(guest.memory_fd, 0) == 0, "ftruncate");
    guest.job->run(guest.job);
    guest.job->run(guest.job);
    EXPECT(rway_guest_vanished(guest.guest));
    EXPECT(broken(&guest, RX) == RWAY_VRING_VANISHED || broken(&guest, TX) == RWAY_VRING_VANISHED);
    sends_well(&other);
    guest_free(&other);
    guest_free(&guest);
}

/* ---- a guest that rewrites everything while we look ---- */

static bool quiet;

static void *scribble(void *argument)
{
    struct guest *guest = argument;
    uint64_t state = 88172645463325252u;
    while (!rway_read_once(&quiet)) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t at = (uint32_t)(state >> 32) % 0x9000 & ~7u;
        /* Mostly what could be meant, so that the walk goes on. */
        uint64_t word = state % 3 == 0 ? state : state % 3 == 1 ? GUEST_BASE + state % MEMORY : state % 0x40000;
        rway_write_once((uint64_t *)(guest->memory + at), word);
    }
    return NULL;
}

static void r7_r8_words_that_change_while_they_are_looked_at(uint64_t features, uint64_t seed)
{
    struct guest guest = guest_new(features);
    pthread_t scribbling;
    uint32_t ignored;
    srand((unsigned)seed);
    rway_write_once(&quiet, false);
    CHECK(pthread_create(&scribbling, NULL, scribble, &guest) == 0, "no thread");
    for (int round = 0; round < 3000; round++) {
        peer_send(&guest, 60 + (uint32_t)rand() % 1500, 1);
        for (int i = 0; i < 8; i++)
            guest.job->run(guest.job);
        while (peer_receive(&guest, NULL, &ignored))
            ;
        for (uint32_t ring = 0; ring < 2; ring++)
            if (broken(&guest, ring) != RWAY_VRING_WHOLE || round % 16 == 0) {
                uint32_t base = rway_pair_stop(guest.job, ring);
                struct rway_vring_setup setup = setup_of(&guest, ring);
                setup.base = features & BIT(VIRTIO_F_RING_PACKED) ? base : (uint32_t)rand() & 0xffff;
                EXPECT(rway_pair_start(guest.job, ring, &setup, NULL) == 0);
                rway_pair_enable(guest.job, ring, 1);
            }
        struct rway_frame left[64];
        while (rway_ring_peek(rway_region_consumer(guest.a, 0), left, 64) != 0)
            ;
        rway_ring_release(rway_region_consumer(guest.a, 0));
    }
    rway_write_once(&quiet, true);
    pthread_join(scribbling, NULL);
    EXPECT(rway_region_broken(guest.a) == RWAY_WHOLE && rway_region_broken(guest.b) == RWAY_WHOLE);
    guest_free(&guest);
}

int main(void)
{
    r1_more_made_available_than_the_ring_holds();
    r2_an_available_index_that_goes_back();
    r3_an_available_entry_that_names_no_descriptor();
    r4_chains_that_leave_the_table_or_go_round();
    r6_indirect_tables_that_cannot_be();
    r20_packed_chains_that_lie();
    packed_rings_go_round_and_give_back_in_order();
    r5_r9_r11_memory_that_is_not_the_guests();
    r10_p4_nothing_but_empty_pieces();
    r12_a_transmit_buffer_that_is_to_be_written();
    r13_p3_frames_that_are_too_short_or_too_long();
    r14_a_header_in_twelve_pieces();
    p1_p2_offload_data_that_no_frame_can_have();
    frames_come_in_whole_and_over_several_buffers();
    r12_r15_receive_buffers_that_can_hold_nothing();
    r16_a_ring_that_holds_less_than_a_frame();
    without_merging_a_frame_too_long_for_its_buffer_is_dropped();
    an_old_guest_has_a_header_of_ten_bytes();
    r17_r18_r21_buffers_over_the_rings_themselves();
    r19_notifications_follow_what_the_guest_asks_for();
    v30_a_call_that_is_never_read();
    v20_v21_v24_regions_that_cannot_be();
    v14_v17_v18_v19_rings_that_cannot_be();
    v25_memory_that_is_taken_away_breaks_this_guest_alone();
    r7_r8_words_that_change_while_they_are_looked_at(SPLIT, 1);
    r7_r8_words_that_change_while_they_are_looked_at(PACKED, 2);
    return failures != 0;
}
