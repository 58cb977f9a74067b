/*
 * What a forwarder held when it was killed, found out and counted by the next one.
 *
 * A forwarder releases its input before it publishes its output, so that nothing is delivered twice; what it held in
 * between is lost with it, and no ring knows. But the sum over all rings that it joins knows: whatever was taken out of
 * one for good is offered to others, once, or as often as it was replicated, or is consumed.
 *
 *      owed(input)   = released - dropped + replicated (less consumed), with each release
 *      paid(output)  = published + dropped - originated, with each publish
 *
 * owed less paid is the same whenever the forwarder is at rest. Each half that it uses remembers where its own number
 * stood when it began, and to which group of halves it belongs; what the sum of a group has grown by since was lost.
 *
 *      group        members
 *      0            any        the half belongs to no group
 *      a number     n          one of n halves with that number: if all are here, what they lack was lost
 *
 * A group begins and ends while its forwarder is at rest. So a kill in the middle of that, which leaves it without some
 * of its members, leaves nothing to be found.
 *
 * Forbidden: group before the base that belongs to it; another base before what was lost is counted.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <sys/random.h>
#include <time.h>

static uint64_t owed(const struct rway_region *region)
{
    uint64_t frames = 0;
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++) {
        const struct rway_consumer *consumer = &region->consumers[queue];
        frames += consumer->counts.frames - consumer->dropped + consumer->replicated.now;
    }
    return frames;
}

static uint64_t paid(const struct rway_region *region)
{
    uint64_t frames = 0;
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++) {
        const struct rway_producer *producer = &region->producers[queue];
        frames += producer->counts.frames + producer->dropped - producer->originated.now;
    }
    return frames;
}

/* Has somebody else used this half since it was attached? Then its number says nothing of what was before. */
static bool is_input_untouched(const struct rway_region *region)
{
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++)
        if (region->consumers[queue].cursor != region->consumers[queue].attached_at)
            return false;
    return true;
}

static bool is_output_untouched(const struct rway_region *region)
{
    for (uint32_t queue = 0; queue < region->geometry.queues; queue++)
        if (region->producers[queue].head != region->producers[queue].attached_at)
            return false;
    return true;
}

/* A group, as far as its members are found. */
struct found {
    uint64_t group;
    uint64_t members; /* that it had */
    uint64_t here;    /* of them */
    bool untouched;
    uint64_t lost;
    uint64_t outputs;
    uint64_t queues; /* of its inputs */
    struct rway_region *output;
};

static void add_input(struct found *found, struct rway_region *region)
{
    const struct rway_tally *tally = &region->own->taken;
    if (rway_read_once(&tally->group) != found->group)
        return;
    found->here++;
    found->untouched &= is_input_untouched(region);
    found->lost += owed(region) - rway_read_once(&tally->base);
    found->queues += region->geometry.queues;
}

static void add_output(struct found *found, struct rway_region *region)
{
    const struct rway_tally *tally = &region->own->given;
    if (rway_read_once(&tally->group) != found->group)
        return;
    found->here++;
    found->untouched &= is_output_untouched(region);
    found->lost -= paid(region) - rway_read_once(&tally->base);
    found->outputs++;
    if (found->output == NULL)
        found->output = region;
}

static int settle_group(const struct rway_tally *tally, struct rway_region *const *regions, uint32_t count,
                        uint64_t *lost)
{
    struct found found = {
        .group = rway_read_once(&tally->group), .members = rway_read_once(&tally->members), .untouched = true};
    if (found.group == 0)
        return RWAY_LOSSES_UNKNOWN;
    for (uint32_t i = 0; i < count; i++) {
        add_input(&found, regions[i]);
        add_output(&found, regions[i]);
    }
    if (found.here != found.members || !found.untouched || found.output == NULL)
        return RWAY_LOSSES_UNKNOWN;
    *lost = found.lost;
    if (found.lost > RWAY_BURST * found.queues * found.outputs)
        return RWAY_LOSSES_IMPLAUSIBLE;
    /* Stored by one word: from then on the sum is what it was, and a kill before it changes nothing. */
    rway_producer_drop(&found.output->producers[0], RWAY_DROP_RESTART, found.lost);
    rway_producer_show_counts(&found.output->producers[0]);
    return RWAY_LOSSES_COUNTED;
}

int rway_losses_count(struct rway_region *const *regions, uint32_t count, uint64_t *lost)
{
    uint64_t sums[] = {[RWAY_LOSSES_UNKNOWN] = 0, [RWAY_LOSSES_COUNTED] = 0, [RWAY_LOSSES_IMPLAUSIBLE] = 0};
    int known = RWAY_LOSSES_UNKNOWN;
    /* Once for each that was sent to: of a group with several, nothing is missing any more from the second on. */
    for (uint32_t i = 0; i < count; i++) {
        uint64_t missing = 0;
        int found = settle_group(&regions[i]->own->given, regions, count, &missing);
        sums[found] += missing;
        known = found > known ? found : known;
    }
    *lost = sums[known];
    return known;
}

static void note(struct rway_tally *tally, uint64_t group, uint64_t members, uint64_t base)
{
    rway_store_release(&tally->group, 0);
    rway_keep_order();
    rway_write_once(&tally->members, members);
    rway_write_once(&tally->base, base);
    rway_store_release(&tally->group, group);
}

/* That no group before it has had; the time where the kernel has no random number yet. Never 0. */
static uint64_t new_group(void)
{
    uint64_t group;
    struct timespec now;
    if (getrandom(&group, sizeof group, GRND_NONBLOCK) != sizeof group) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        group = (uint64_t)now.tv_sec << 32 | (uint64_t)now.tv_nsec;
    }
    return group | 1;
}

void rway_losses_watch(struct rway_region *const *in, uint32_t in_count, struct rway_region *const *out,
                       uint32_t out_count)
{
    const uint64_t group = new_group(), members = (uint64_t)in_count + out_count;
    for (uint32_t i = 0; i < in_count; i++)
        note(&in[i]->own->taken, group, members, owed(in[i]));
    for (uint32_t i = 0; i < out_count; i++)
        note(&out[i]->own->given, group, members, paid(out[i]));
}

void rway_losses_forget(struct rway_region *region)
{
    rway_store_release(&region->own->taken.group, 0);
    rway_store_release(&region->own->given.group, 0);
}
