/* Loops that may spin for ever sleep all the same when there are more of them than processors. */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

#include "check.h"
#include "stack.h"

enum { LOOPS = 3, FOR_EVER_US = 1000 * 1000 * 1000, PATIENCE_S = 60 };

static void share_one_processor(void)
{
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0, "sched_getaffinity");
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
}

static uint64_t sleeps(const struct rway_loop *loop)
{
    struct rway_loop_counts counts;
    rway_loop_read(loop, &counts);
    return counts.sleeps;
}

int main(void)
{
    struct rway_loop *loops[LOOPS];
    share_one_processor();
    for (int i = 0; i < LOOPS; i++) {
        loops[i] = rway_loop_new(FOR_EVER_US);
        CHECK(loops[i] != NULL && rway_loop_start(loops[i]) == 0, "loop %d", i);
    }
    time_t until = time(NULL) + PATIENCE_S;
    for (int i = 0; i < LOOPS; i++)
        while (sleeps(loops[i]) == 0) {
            CHECK(time(NULL) < until, "loop %d never slept", i);
            sched_yield();
        }
    for (int i = 0; i < LOOPS; i++)
        rway_loop_free(loops[i]);
    return 0;
}
