/* Split virtqueues: virtio 1.2, 2.7. The index of the used ring is ours, and is never read back. */
#include "vhost.h"

enum { IDX = 1, ENTRIES = 2 }; /* of the available ring, in words of 16 bits: flags, index, entries */

static const uint16_t *avail_word(const struct rway_vring *ring, uint32_t word)
{
    return (const uint16_t *)ring->avail + word;
}

static uint16_t *used_flags(const struct rway_vring *ring)
{
    return (uint16_t *)ring->used;
}

static uint16_t *used_idx(const struct rway_vring *ring)
{
    return (uint16_t *)ring->used + 1;
}

/* An index that is further ahead than the ring is long, or has gone back, would have us take what is not ours. */
static bool refresh(struct rway_vring *ring)
{
    /* Acquire: pairs with the driver's barrier before the index; entries and descriptors are written before it. */
    uint16_t peer_x = rway_load_acquire(avail_word(ring, IDX));
    if ((uint16_t)(peer_x - ring->next.at) > ring->size) {
        rway_vring_break(ring, RWAY_VRING_AVAIL);
        return false;
    }
    ring->seen.at = peer_x;
    return true;
}

struct rway_vring_desc rway_split_load(const uint8_t *at)
{
    const struct vring_desc *peer_x = (const struct vring_desc *)at;
    return (struct rway_vring_desc){
        .address = rway_read_once(&peer_x->addr),
        .len = rway_read_once(&peer_x->len),
        .flags = rway_read_once(&peer_x->flags),
        .next = rway_read_once(&peer_x->next),
    };
}

enum rway_fetch rway_split_fetch(struct rway_vring *ring, struct rway_chain *chain)
{
    if (ring->next.at == ring->seen.at && !refresh(ring))
        return RWAY_FETCH_BROKEN;
    if (ring->next.at == ring->seen.at)
        return RWAY_FETCH_NONE;
    uint32_t index = rway_read_once(avail_word(ring, ENTRIES + (ring->next.at & (ring->size - 1))));
    if (index >= ring->size) {
        rway_vring_break(ring, RWAY_VRING_HEAD);
        return RWAY_FETCH_BROKEN;
    }
    chain->id = (uint16_t)index;
    chain->slots = 1;
    for (uint32_t walked = 0; walked < ring->size; walked++) {
        struct rway_vring_desc desc = rway_split_load(ring->desc + index * sizeof(struct vring_desc));
        enum rway_fetch added = rway_chain_add(ring, chain, &desc);
        if (added != RWAY_FETCH_CHAIN)
            return added;
        if (!(desc.flags & VRING_DESC_F_NEXT)) {
            ring->next.at++;
            return RWAY_FETCH_CHAIN;
        }
        index = desc.next;
        if (index >= ring->size) {
            rway_vring_break(ring, RWAY_VRING_NEXT);
            return RWAY_FETCH_BROKEN;
        }
    }
    rway_vring_break(ring, RWAY_VRING_CHAIN); /* so many descriptors there are not: it goes round in a circle */
    return RWAY_FETCH_BROKEN;
}

void rway_split_use(struct rway_vring *ring, const struct rway_chain *chain, uint32_t len)
{
    struct vring_used_elem *elem = (struct vring_used_elem *)(ring->used + 4) + (ring->done.at & (ring->size - 1));
    rway_write_once(&elem->id, chain->id);
    rway_write_once(&elem->len, len);
    ring->done.at++;
}

void rway_split_show(struct rway_vring *ring)
{
    if (ring->shown.at == ring->done.at)
        return;
    ring->shown = ring->done;
    /* Release: the driver reads the entries, and the buffers, after the index. */
    rway_store_release(used_idx(ring), ring->shown.at);
}

/* virtio 1.2, 2.7.7 */
bool rway_split_wants_call(struct rway_vring *ring)
{
    uint16_t from = ring->notified.at, to = ring->shown.at;
    if (from == to)
        return false;
    ring->notified = ring->shown;
    rway_full_fence(); /* between showing the index and looking whether somebody waits for it */
    if (!ring->event_idx)
        return !(rway_read_once(avail_word(ring, 0)) & VRING_AVAIL_F_NO_INTERRUPT);
    uint16_t peer_x = rway_read_once(avail_word(ring, ENTRIES + ring->size));
    return (uint16_t)(to - peer_x - 1) < (uint16_t)(to - from);
}

void rway_split_listen(struct rway_vring *ring, bool listen)
{
    if (!ring->event_idx) {
        rway_write_once(used_flags(ring), listen ? 0 : VRING_USED_F_NO_NOTIFY);
    } else if (listen) {
        uint16_t *avail_event = (uint16_t *)(ring->used + 4 + 8 * (uint64_t)ring->size);
        rway_write_once(avail_event, ring->seen.at);
    }
}

bool rway_split_has(const struct rway_vring *ring)
{
    return rway_read_once(avail_word(ring, IDX)) != ring->seen.at;
}
