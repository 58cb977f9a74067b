/*
 * Loops that may spin for ever sleep all the same when there are more of them than processors. A hook has its turn
 * before each turn's jobs, lets go before each sleep and at the end, and outlives the jobs.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

#include "check.h"
#include "engine/job.h"

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

/* A hook and a job that look at each other; all of it is the loop's thread's until that has ended. */
struct pair {
    struct rway_hook hook;
    struct rway_job job;
    bool holds, freed;
    uint32_t turns, rests, runs;
};

static struct pair pair;

static void pair_turn(struct rway_hook *hook)
{
    CHECK(hook == &pair.hook && pair.runs == pair.turns, "a turn before the jobs of the one before");
    pair.holds = true;
    pair.turns++;
}

static void pair_rest(struct rway_hook *hook)
{
    CHECK(hook == &pair.hook && pair.runs == pair.turns, "a rest in the middle of a turn");
    pair.holds = false;
    pair.rests++;
}

static uint32_t pair_run(struct rway_job *job)
{
    CHECK(job == &pair.job && pair.holds, "a job without its hook");
    pair.runs++;
    return pair.runs % 2;
}

static void pair_arm(struct rway_job *job, struct rway_waiter *waiter)
{
    (void)waiter;
    CHECK(job == &pair.job && pair.holds, "armed after the hook has let go");
}

static void pair_free_job(struct rway_job *job)
{
    CHECK(job == &pair.job && !pair.freed, "the hook is freed before the job");
}

static void pair_free_hook(struct rway_hook *hook)
{
    CHECK(hook == &pair.hook && !pair.holds, "freed while it holds");
    pair.freed = true;
}

static void a_hook_frames_each_turn_and_outlives_the_jobs(void)
{
    pair.hook = (struct rway_hook){.turn = pair_turn, .rest = pair_rest, .free = pair_free_hook};
    pair.job = (struct rway_job){.run = pair_run, .arm = pair_arm, .free = pair_free_job};
    struct rway_hook silent = {0};
    struct rway_loop *loop = rway_loop_new(0);
    CHECK(rway_loop_hook(loop, &pair.hook) == 0 && rway_loop_hook(loop, &silent) == 0, "hook");
    CHECK(rway_loop_hook(loop, NULL) == -1 && rway_loop_add(loop, &pair.job) == 0, "job");
    CHECK(rway_loop_start(loop) == 0 && rway_loop_hook(loop, &silent) == -1, "start");
    time_t until = time(NULL) + PATIENCE_S;
    while (sleeps(loop) < 3) { /* without a bell each takes the waiter's bound */
        CHECK(time(NULL) < until, "it does not sleep");
        sched_yield();
    }
    rway_loop_free(loop);
    CHECK(pair.freed && pair.rests >= 4 && pair.turns == pair.runs, "%u rests", pair.rests);
}

int main(void)
{
    a_hook_frames_each_turn_and_outlives_the_jobs();
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
