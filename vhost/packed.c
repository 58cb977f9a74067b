/*
 * Packed virtqueues: virtio 1.2, 2.8. Buffers are given back in the order in which they came, so that where we write is
 * always behind where we read, by as many entries as are out.
 */
#include "vhost.h"

enum {
    AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
    USED = 1 << VRING_PACKED_DESC_F_USED,
};

static struct vring_packed_desc *entry(const struct rway_vring *ring, uint16_t at)
{
    return (struct vring_packed_desc *)ring->desc + at;
}

static void advance(const struct rway_vring *ring, struct rway_vring_cursor *cursor, uint32_t slots)
{
    uint32_t at = cursor->at + slots;
    if (at >= ring->size) {
        at -= ring->size;
        cursor->wrap = !cursor->wrap;
    }
    cursor->at = (uint16_t)at;
}

static bool is_available(uint16_t flags, bool wrap)
{
    return ((flags & AVAIL) != 0) == wrap && ((flags & USED) != 0) != wrap;
}

/* Acquire: pairs with the driver's barrier before the flags; the rest of the descriptor, and the buffer, came first. */
static uint16_t load_flags(const struct rway_vring *ring, uint16_t at)
{
    return rway_load_acquire(&entry(ring, at)->flags);
}

static struct rway_vring_desc load(const uint8_t *at, uint16_t flags)
{
    const struct vring_packed_desc *peer_x = (const struct vring_packed_desc *)at;
    return (struct rway_vring_desc){
        .address = rway_read_once(&peer_x->addr),
        .len = rway_read_once(&peer_x->len),
        .flags = flags,
        .next = rway_read_once(&peer_x->id),
    };
}

struct rway_vring_desc rway_packed_load(const uint8_t *at)
{
    return load(at, rway_read_once(&((const struct vring_packed_desc *)at)->flags));
}

enum rway_fetch rway_packed_fetch(struct rway_vring *ring, struct rway_chain *chain)
{
    while (chain->slots < ring->size) {
        uint16_t flags = load_flags(ring, ring->next.at);
        if (!is_available(flags, ring->next.wrap)) {
            if (chain->slots == 0) {
                ring->seen = ring->next;
                return RWAY_FETCH_NONE;
            }
            /* The driver makes the first one of a chain available last. Else we would wait for the others for ever. */
            rway_vring_break(ring, RWAY_VRING_WRAP);
            return RWAY_FETCH_BROKEN;
        }
        struct rway_vring_desc desc = load((const uint8_t *)entry(ring, ring->next.at), flags);
        enum rway_fetch added = rway_chain_add(ring, chain, &desc);
        if (added != RWAY_FETCH_CHAIN)
            return added;
        advance(ring, &ring->next, 1);
        chain->slots++;
        if (flags & VRING_DESC_F_NEXT)
            continue;
        chain->id = desc.next;
        if (chain->id < ring->size)
            return RWAY_FETCH_CHAIN;
        rway_vring_break(ring, RWAY_VRING_HEAD);
        return RWAY_FETCH_BROKEN;
    }
    rway_vring_break(ring, RWAY_VRING_CHAIN);
    return RWAY_FETCH_BROKEN;
}

/* The first one of a batch becomes used last: until then the driver looks at none of the others. */
void rway_packed_use(struct rway_vring *ring, const struct rway_chain *chain, uint32_t len)
{
    struct vring_packed_desc *desc = entry(ring, ring->done.at);
    uint16_t flags = (uint16_t)((ring->done.wrap ? AVAIL | USED : 0) | (len != 0 ? VRING_DESC_F_WRITE : 0));
    rway_write_once(&desc->id, chain->id);
    rway_write_once(&desc->len, len);
    if (ring->done.at == ring->shown.at && ring->done.wrap == ring->shown.wrap)
        ring->first_flags = flags;
    else
        rway_write_once(&desc->flags, flags);
    advance(ring, &ring->done, chain->slots);
}

static bool same(struct rway_vring_cursor a, struct rway_vring_cursor b)
{
    return a.at == b.at && a.wrap == b.wrap;
}

void rway_packed_show(struct rway_vring *ring)
{
    if (same(ring->shown, ring->done))
        return;
    /* Release: ids, lengths, buffers, and the flags of the others come before. */
    rway_store_release(&entry(ring, ring->shown.at)->flags, ring->first_flags);
    ring->shown = ring->done;
}

/* virtio 1.2, 2.8.10: the driver's event suppression says offset and wrap in its low half, and how in its high one. */
bool rway_packed_wants_call(struct rway_vring *ring)
{
    struct rway_vring_cursor from = ring->notified, to = ring->shown;
    if (same(from, to))
        return false;
    ring->notified = ring->shown;
    rway_full_fence(); /* between showing and looking whether somebody waits for it */
    uint32_t peer_x = rway_read_once((const uint32_t *)ring->avail);
    uint32_t how = peer_x >> 16;
    if (how == VRING_PACKED_EVENT_FLAG_DISABLE)
        return false;
    if (how != VRING_PACKED_EVENT_FLAG_DESC || !ring->event_idx)
        return true;
    /* All three on one line: what lies in the lap before has the ring's size less. */
    int32_t event = (int32_t)(peer_x & 0x7fff), size = (int32_t)ring->size;
    bool event_wrap = (peer_x & 0x8000) != 0;
    int32_t start = from.wrap == to.wrap ? from.at : from.at - size;
    if (event_wrap != to.wrap)
        event -= size;
    return event >= start && event < to.at;
}

void rway_packed_listen(struct rway_vring *ring, bool listen)
{
    uint32_t how = listen ? VRING_PACKED_EVENT_FLAG_ENABLE : VRING_PACKED_EVENT_FLAG_DISABLE;
    rway_write_once((uint32_t *)ring->used, how << 16);
}

bool rway_packed_has(const struct rway_vring *ring)
{
    return is_available(rway_read_once(&entry(ring, ring->seen.at)->flags), ring->seen.wrap);
}
