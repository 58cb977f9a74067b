/* See trail.h. */
#include "trail.h"

static bool all_passed(const struct rway_trail *trail, struct rway_producer *const *out, uint32_t out_count)
{
    for (uint32_t i = 0; i < out_count; i++)
        if ((int64_t)(rway_producer_passed(out[i]) - trail->sent[i]) < 0)
            return false;
    return true;
}

void rway_trail_step(struct rway_trail *trail, struct rway_consumer *in, struct rway_producer *const *out,
                     uint32_t out_count)
{
    if (trail->open) {
        if (!all_passed(trail, out, out_count))
            return;
        rway_consumer_pass(in, trail->taken);
        trail->open = false;
    }
    if (rway_consumer_position(in) == trail->taken)
        return;
    trail->taken = rway_consumer_position(in);
    for (uint32_t i = 0; i < out_count; i++)
        trail->sent[i] = rway_producer_position(out[i]);
    trail->open = true;
}
