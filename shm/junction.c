/*
 * The junction of a forwarder: what is in neither ring when it is killed, found out and counted by the next one.
 *
 * A forwarder releases its input before it publishes its output, so that nothing is delivered twice; what it held in
 * between is lost with it, and neither ring knows. But the lead knows: frames taken out of one link for good, less
 * frames offered to the other. It grows with the release and shrinks with the publish, and is the same each time that
 * the forwarder is at rest. The side that takes frames out remembers it, and the other link's number with it.
 *
 *      joined_to    joined_lead
 *      0            any            not joined
 *      a link       a lead         joined: whatever the lead has grown by at the next join was lost
 *
 * Forbidden: joined_to before the joined_lead that belongs to it; joined_lead anew before what was lost is counted.
 */
#include "ring.h"

static uint64_t taken_for_good(const struct rway_region *region)
{
    uint64_t frames = 0;
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++)
        frames += region->consumers[queue].counts.frames - region->consumers[queue].dropped;
    return frames;
}

static uint64_t offered(const struct rway_region *region)
{
    uint64_t frames = 0;
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++)
        frames += region->producers[queue].counts.frames + region->producers[queue].dropped;
    return frames;
}

/* Has somebody else used these halves since they were attached? Then the lead says nothing of what was before. */
static bool untouched(const struct rway_region *in, const struct rway_region *out)
{
    for (uint32_t queue = 0; queue < in->geometry.queues; queue++)
        if (in->consumers[queue].cursor != in->consumers[queue].attached_at)
            return false;
    for (uint32_t queue = 0; queue < out->geometry.queues; queue++)
        if (out->producers[queue].head != out->producers[queue].attached_at)
            return false;
    return true;
}

static void note(struct rway_region *in, uint64_t link_id, uint64_t lead)
{
    rway_store_release(&in->own->joined_to, 0);
    rway_keep_order();
    rway_write_once(&in->own->joined_lead, lead);
    rway_store_release(&in->own->joined_to, link_id);
}

int rway_region_join(struct rway_region *in, struct rway_region *out, uint64_t *lost)
{
    uint64_t lead = taken_for_good(in) - offered(out);
    *lost = 0;
    if (rway_read_once(&in->own->joined_to) != out->link_id || out->link_id == 0 || !untouched(in, out)) {
        note(in, out->link_id, lead);
        return RWAY_JOIN_FRESH;
    }
    *lost = lead - rway_read_once(&in->own->joined_lead);
    if (*lost > (uint64_t)RWAY_BURST * in->geometry.queues) {
        note(in, out->link_id, lead);
        return RWAY_JOIN_IMPLAUSIBLE;
    }
    /* Stored by one word: from then on the lead is joined_lead again, and a kill before it changes nothing. */
    rway_producer_drop(&out->producers[0], RWAY_DROP_RESTART, *lost);
    rway_producer_show_counts(&out->producers[0]);
    return RWAY_JOIN_CONTINUED;
}

void rway_region_part(struct rway_region *in)
{
    rway_store_release(&in->own->joined_to, 0);
}
