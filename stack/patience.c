/* See patience.h. */
#include "patience.h"

#include <time.h>

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The out-ring is full: has its consumer stood still for so long that nobody waits for it? */
static bool is_over(struct rway_patience *patience, const struct rway_producer *out)
{
    uint64_t tail = rway_producer_released(out), now = now_ns();
    if (tail == patience->stuck_at && patience->since_ns != 0)
        return now - patience->since_ns >= patience->lasts_ns;
    patience->stuck_at = tail;
    patience->since_ns = now;
    return false;
}

uint32_t rway_patience_admit(struct rway_patience *patience, struct rway_producer *out,
                             const struct rway_frame *frames, uint32_t count)
{
    if (patience->lasts_ns == 0)
        return count;
    uint32_t fitting = rway_producer_fitting(out, frames, count);
    if (__builtin_expect(fitting == count, 1))
        return count;
    return is_over(patience, out) ? count : fitting;
}
