/* See patience.h. */
#include "patience.h"

#include <time.h>

static const uint64_t LOOKS_NS = 100 * 1000 * 1000; /* a sleep is shorter: see BOUND_NS in shm/wait.c */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void rway_patience_set(struct rway_patience *patience, uint64_t lasts_us)
{
    rway_write_once(&patience->lasts_ns, lasts_us * 1000);
}

bool rway_patience_is_over(struct rway_patience *patience, uint64_t tail, uint32_t behind, uint64_t now_ns)
{
    bool moved = tail != patience->stuck_at || patience->looked_ns == 0;
    uint64_t passed_ns = now_ns - patience->looked_ns;
    if (moved)
        patience->given_up = false;
    /* Who waits no more is about to move, or was started again and has yet to look: neither is to be given up on. */
    if (moved || behind < patience->behind) {
        patience->stuck_at = tail;
        patience->waited_ns = 0;
    } else {
        patience->waited_ns += passed_ns < LOOKS_NS ? passed_ns : LOOKS_NS;
    }
    patience->looked_ns = now_ns;
    patience->behind = behind;
    if (patience->waited_ns >= rway_read_once(&patience->lasts_ns) * (1 + behind))
        patience->given_up = true;
    return patience->given_up;
}

uint32_t rway_patience_admit(struct rway_patience *patience, struct rway_producer *out, const struct rway_frame *frames,
                             uint32_t count)
{
    patience->depth = 0;
    if (rway_read_once(&patience->lasts_ns) == 0)
        return count;
    uint32_t fitting = rway_producer_fitting(out, frames, count);
    if (__builtin_expect(fitting == count, 1))
        return count;
    uint32_t behind = rway_producer_stalled(out);
    if (rway_patience_is_over(patience, rway_producer_released(out), behind, now_ns()))
        return count;
    patience->depth = behind < RWAY_STALL_MAX ? behind + 1 : RWAY_STALL_MAX;
    return fitting;
}
