/*
 * A ring, whatever its format: where it lies, how it is begun, and how chains of descriptors become pieces of memory.
 *
 * Two kinds of mistake are told apart. A buffer that cannot be used (no memory of the guest, the wrong direction) is
 * given back unused, and the ring goes on. A ring that contradicts itself (an index outside it, a chain without an end)
 * is broken: there is no telling what the guest believes, and only its driver can begin anew.
 */
#include "vhost.h"

#include <linux/virtio_config.h>

#define HAS(features, bit) (((features) >> (bit)) & 1)

void rway_vring_break(struct rway_vring *ring, int cause)
{
    if (ring->broken == RWAY_VRING_WHOLE)
        rway_write_once(&ring->broken, cause);
}

/* ---- where it lies: virtio 1.2, 2.7 and 2.8 ---- */

struct areas {
    uint64_t size[3]; /* bytes of descriptors, driver's area, device's area */
    uint64_t align[3];
};

static struct areas areas_of(uint32_t size, bool packed)
{
    if (packed)
        return (struct areas){.size = {16 * (uint64_t)size, 4, 4}, .align = {16, 4, 4}};
    return (struct areas){.size = {16 * (uint64_t)size, 6 + 2 * (uint64_t)size, 6 + 8 * (uint64_t)size},
                          .align = {16, 2, 4}};
}

static bool find_areas(const struct rway_guest *guest, const struct rway_vring_setup *setup, uint8_t *at[3])
{
    const uint64_t address[3] = {setup->desc, setup->avail, setup->used};
    const struct areas areas = areas_of(setup->size, HAS(setup->features, VIRTIO_F_RING_PACKED));
    for (int i = 0; i < 3; i++) {
        at[i] = guest == NULL ? NULL : rway_guest_user(guest, address[i], areas.size[i]);
        if (at[i] == NULL)
            return false;
    }
    return true;
}

static int check_addresses(const struct rway_vring_setup *setup, bool packed, struct rway_error *error)
{
    static const char *const NAMES[] = {"descriptor table", "available ring", "used ring"};
    const uint64_t address[3] = {setup->desc, setup->avail, setup->used};
    const struct areas areas = areas_of(setup->size, packed);
    for (int i = 0; i < 3; i++)
        if (address[i] % areas.align[i] != 0)
            return rway_refuse(error, RWAY_REFUSED_ARGUMENT, NAMES[i], address[i], areas.align[i]);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            if (i != j && address[i] - address[j] < areas.size[j])
                return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "areas of a ring, which overlap", address[i],
                                   address[j]);
    return 0;
}

static int check_setup(const struct rway_vring_setup *setup, bool packed, struct rway_error *error)
{
    uint32_t size = setup->size;
    if (size == 0 || size > RWAY_VRING_SIZE_MAX || (!packed && (size & (size - 1)) != 0))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "size of a ring", size, RWAY_VRING_SIZE_MAX);
    uint32_t at = packed ? setup->base & 0x7fff : setup->base;
    if (at >= (packed ? size : 65536))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "base of a ring", at, packed ? size : 65536);
    return check_addresses(setup, packed, error);
}

int rway_vring_start(struct rway_vring *ring, struct rway_guest *guest, const struct rway_vring_setup *setup,
                     struct rway_error *error)
{
    bool packed = HAS(setup->features, VIRTIO_F_RING_PACKED);
    uint8_t *at[3];
    int refused = check_setup(setup, packed, error);
    if (refused)
        return refused;
    if (!find_areas(guest, setup, at))
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "address of a ring, in no region", setup->desc, 0);
    ring->guest = guest;
    ring->setup = *setup;
    ring->packed = packed;
    ring->indirect = HAS(setup->features, VIRTIO_RING_F_INDIRECT_DESC);
    ring->event_idx = HAS(setup->features, VIRTIO_RING_F_EVENT_IDX);
    ring->size = setup->size;
    ring->desc = at[0];
    ring->avail = at[1];
    ring->used = at[2];
    /* What has been fetched has been given back too: a packed ring's other half, the used position, is the same. */
    ring->next.at = (uint16_t)(packed ? setup->base & 0x7fff : setup->base);
    ring->next.wrap = packed && (setup->base & 0x8000) != 0;
    ring->done = ring->shown = ring->notified = ring->seen = ring->next;
    ring->piece_count = 0;
    ring->enabled = ring->listening = false;
    ring->kick_fd = ring->call_fd = -1;
    rway_write_once(&ring->broken, RWAY_VRING_WHOLE);
    ring->started = true;
    return 0;
}

bool rway_vring_lies_in(const struct rway_vring *ring, const struct rway_guest *guest)
{
    uint8_t *at[3];
    return find_areas(guest, &ring->setup, at);
}

bool rway_vring_place(struct rway_vring *ring, struct rway_guest *guest)
{
    uint8_t *at[3];
    if (!find_areas(guest, &ring->setup, at))
        return false;
    ring->guest = guest;
    ring->desc = at[0];
    ring->avail = at[1];
    ring->used = at[2];
    return true;
}

uint32_t rway_vring_base(const struct rway_vring *ring)
{
    if (!ring->packed)
        return ring->done.at;
    uint32_t half = ring->done.at | (ring->done.wrap ? 0x8000u : 0);
    return half | half << 16;
}

/* ---- chains ---- */

/* Without the look at every piece's address a guest would have us read from it, or write to it, what is ours. */
static enum rway_fetch add_memory(struct rway_vring *ring, struct rway_chain *chain, const struct rway_vring_desc *desc)
{
    uint64_t address = desc->address, left = desc->len;
    if (((desc->flags & VRING_DESC_F_WRITE) != 0) != ring->writable)
        chain->bad = true;
    chain->len += left; /* at most RWAY_VRING_SIZE_MAX times 32 bits: no overflow */
    while (left != 0 && !chain->bad) {
        uint64_t here = left;
        uint8_t *data = rway_guest_at(ring->guest, address, &here);
        if (data == NULL) {
            chain->bad = true;
            break;
        }
        if (ring->piece_count == RWAY_CHAIN_MAX)
            return RWAY_FETCH_NO_ROOM;
        ring->pieces[ring->piece_count++] = (struct rway_piece){.data = data, .len = here};
        chain->pieces++;
        address += here; /* may wrap to 0: then that is looked up, as any other */
        left -= here;
    }
    return RWAY_FETCH_CHAIN;
}

static enum rway_fetch break_ring(struct rway_vring *ring, int cause)
{
    rway_vring_break(ring, cause);
    return RWAY_FETCH_BROKEN;
}

/* A table may lie over two regions; a descriptor that does is none that a driver has made. */
static bool load_indirect(const struct rway_vring *ring, uint64_t address, struct rway_vring_desc *desc)
{
    uint64_t len = 16;
    const uint8_t *at = rway_guest_at(ring->guest, address, &len);
    if (at == NULL || len != 16)
        return false;
    *desc = ring->packed ? rway_packed_load(at) : rway_split_load(at);
    return true;
}

/*
 * virtio 1.2, 2.7.5.3 and 2.8.7: tables of split rings are linked by next, those of packed ones taken in order, and of
 * their flags only the one for writing means anything. Each descriptor is loaded once; a length that changes under way
 * changes nothing, because this private one bounds the walk.
 *
 * DPDK's driver (22.11) leaves the flag for writing in the header's entry of a packed transmit ring's table, and its
 * own back end never looks at it. We only read there, so it costs nothing to take it for what is meant.
 */
static enum rway_fetch add_indirect(struct rway_vring *ring, struct rway_chain *chain,
                                    const struct rway_vring_desc *table)
{
    uint32_t count = table->len / 16, at = 0;
    if (!ring->indirect || count == 0 || table->len % 16 != 0 || table->address % 8 != 0 || count > RWAY_CHAIN_MAX)
        return break_ring(ring, RWAY_VRING_INDIRECT);
    for (uint32_t walked = 0; walked < count; walked++) {
        struct rway_vring_desc desc;
        if (!load_indirect(ring, table->address + 16 * (uint64_t)at, &desc))
            return break_ring(ring, RWAY_VRING_INDIRECT);
        if (desc.flags & VRING_DESC_F_INDIRECT && !ring->packed)
            return break_ring(ring, RWAY_VRING_INDIRECT);
        if (ring->packed && !ring->writable)
            desc.flags &= (uint16_t)~VRING_DESC_F_WRITE;
        enum rway_fetch added = add_memory(ring, chain, &desc);
        if (added != RWAY_FETCH_CHAIN)
            return added;
        if (ring->packed) {
            at++;
            continue;
        }
        if (!(desc.flags & VRING_DESC_F_NEXT))
            return RWAY_FETCH_CHAIN;
        at = desc.next;
        if (at >= count)
            return break_ring(ring, RWAY_VRING_NEXT);
    }
    return ring->packed ? RWAY_FETCH_CHAIN : break_ring(ring, RWAY_VRING_CHAIN);
}

enum rway_fetch rway_chain_add(struct rway_vring *ring, struct rway_chain *chain, const struct rway_vring_desc *desc)
{
    if (!(desc->flags & VRING_DESC_F_INDIRECT))
        return add_memory(ring, chain, desc);
    if (desc->flags & VRING_DESC_F_NEXT)
        return break_ring(ring, RWAY_VRING_INDIRECT);
    return add_indirect(ring, chain, desc);
}

/* ---- by format ---- */

enum rway_fetch rway_vring_fetch(struct rway_vring *ring, struct rway_chain *chain)
{
    if (!rway_vring_runs(ring))
        return RWAY_FETCH_BROKEN;
    const struct rway_vring_cursor next = ring->next;
    uint32_t before = ring->piece_count;
    *chain = (struct rway_chain){0};
    enum rway_fetch fetched = ring->packed ? rway_packed_fetch(ring, chain) : rway_split_fetch(ring, chain);
    if (__builtin_expect(fetched == RWAY_FETCH_CHAIN, 1))
        return fetched;
    ring->next = next;
    ring->piece_count = before;
    /* More pieces than there is room for, with none beside it: longer than any chain that a driver makes. */
    if (fetched == RWAY_FETCH_NO_ROOM && before == 0)
        return break_ring(ring, RWAY_VRING_CHAIN);
    return fetched;
}

void rway_vring_use(struct rway_vring *ring, const struct rway_chain *chain, uint32_t len)
{
    if (ring->packed)
        rway_packed_use(ring, chain, len);
    else
        rway_split_use(ring, chain, len);
}

void rway_vring_show(struct rway_vring *ring)
{
    if (ring->packed)
        rway_packed_show(ring);
    else
        rway_split_show(ring);
}

bool rway_vring_wants_call(struct rway_vring *ring)
{
    return ring->packed ? rway_packed_wants_call(ring) : rway_split_wants_call(ring);
}

void rway_vring_listen(struct rway_vring *ring, bool listen)
{
    if (!listen && !ring->listening)
        return;
    ring->listening = listen;
    if (ring->packed)
        rway_packed_listen(ring, listen);
    else
        rway_split_listen(ring, listen);
    if (listen)
        rway_full_fence(); /* before the caller looks again: either we see what is made available, or we are kicked */
}

bool rway_vring_has(const struct rway_vring *ring)
{
    return ring->packed ? rway_packed_has(ring) : rway_split_has(ring);
}
