/*
 * A loop: one thread that runs jobs until none has work, spins a little, and then sleeps until a bell rings.
 *
 *      each hook's turn ─► run every job ─► work? ─yes─► again
 *            ▲                               │ no: for spin_us, while nobody else wants the processor
 *            └── sleep ◄── each hook's rest ◄┘
 *
 * Somebody does when a spinning loop finds that it did not run for a while: with more pollers than processors each
 * would otherwise take time from the one that it waits for. It sleeps at once then, and does not spin for a time.
 *
 * At the top of a turn the loop holds nothing from the one before: no frame, and nothing of what its hooks hold. That
 * is where it stops, and where hooks take up what has changed.
 */
#define _GNU_SOURCE
#include "engine/job.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { JOBS_MAX = 64, HOOKS_MAX = 16, BOUND_US = 1000 * 1000 };
enum {
    GAP_US = 200,          /* not to have run for so long is to have been preempted */
    CROWDED_US = 20 * 1000 /* and for so long there is no spinning then */
};

struct rway_loop {
    struct rway_job *jobs[JOBS_MAX];
    uint32_t job_count;
    struct rway_hook *hooks[HOOKS_MAX];
    uint32_t hook_count;
    uint32_t spin_us;
    uint64_t idle_since_us; /* 0: at work */
    uint64_t looked_at_us;  /* the last turn of the spinning */
    uint64_t crowded_until_us;
    bool stopping; /* written by rway_loop_stop */
    bool running;
    int stop_fd; /* an eventfd: wakes the loop to be stopped */
    pthread_t thread;
    struct rway_waiter *waiter;
    struct rway_loop_counts counts; /* written by the loop's thread */
};

struct rway_loop *rway_loop_new(uint32_t spin_us)
{
    struct rway_loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL)
        return NULL;
    loop->spin_us = spin_us;
    loop->waiter = rway_waiter_new();
    loop->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->waiter == NULL || loop->stop_fd < 0) {
        rway_loop_free(loop);
        return NULL;
    }
    return loop;
}

int rway_loop_add(struct rway_loop *loop, struct rway_job *job)
{
    if (loop->running || job == NULL || loop->job_count == JOBS_MAX)
        return -1;
    loop->jobs[loop->job_count++] = job;
    return 0;
}

int rway_loop_hook(struct rway_loop *loop, struct rway_hook *hook)
{
    if (loop->running || hook == NULL || loop->hook_count == HOOKS_MAX)
        return -1;
    loop->hooks[loop->hook_count++] = hook;
    return 0;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static void begin_turn(struct rway_loop *loop)
{
    for (uint32_t i = 0; i < loop->hook_count; i++)
        if (loop->hooks[i]->turn != NULL)
            loop->hooks[i]->turn(loop->hooks[i]);
}

static void let_go(struct rway_loop *loop)
{
    for (uint32_t i = 0; i < loop->hook_count; i++)
        if (loop->hooks[i]->rest != NULL)
            loop->hooks[i]->rest(loop->hooks[i]);
}

static void rest(struct rway_loop *loop)
{
    rway_waiter_reset(loop->waiter);
    rway_waiter_add_fd(loop->waiter, loop->stop_fd, POLLIN);
    for (uint32_t i = 0; i < loop->job_count; i++)
        loop->jobs[i]->arm(loop->jobs[i], loop->waiter);
    let_go(loop);
    rway_waiter_wait(loop->waiter, BOUND_US);
    rway_write_once(&loop->counts.sleeps, loop->counts.sleeps + 1);
}

static uint32_t run_jobs(struct rway_loop *loop)
{
    uint32_t moved = 0;
    begin_turn(loop);
    for (uint32_t i = 0; i < loop->job_count; i++)
        moved += loop->jobs[i]->run(loop->jobs[i]);
    return moved;
}

/* After a turn without work: may the loop go on without sleeping? */
static bool may_spin(struct rway_loop *loop)
{
    if (loop->spin_us == 0)
        return false;
    uint64_t now = now_us();
    if (loop->idle_since_us == 0)
        loop->idle_since_us = loop->looked_at_us = now;
    if (now - loop->looked_at_us > GAP_US)
        loop->crowded_until_us = now + CROWDED_US;
    loop->looked_at_us = now;
    return now >= loop->crowded_until_us && now - loop->idle_since_us < loop->spin_us;
}

static void *run(void *argument)
{
    struct rway_loop *loop = argument;
    /* Acquire: pairs with the release in rway_loop_stop. */
    while (!__atomic_load_n(&loop->stopping, __ATOMIC_ACQUIRE)) {
        uint32_t moved = run_jobs(loop);
        rway_write_once(&loop->counts.iterations, loop->counts.iterations + 1);
        if (moved != 0) {
            rway_write_once(&loop->counts.frames, loop->counts.frames + moved);
            loop->idle_since_us = 0;
        } else if (!may_spin(loop)) {
            rest(loop);
            loop->idle_since_us = 0;
        }
    }
    let_go(loop);
    return NULL;
}

int rway_loop_start(struct rway_loop *loop)
{
    /* Signals are Python's, and SIGPIPE of a bell nobody sleeps on any more is nobody's. */
    sigset_t all, before;
    if (loop->running)
        return -1;
    sigfillset(&all);
    /* SIGBUS stays open: it is how memory that vanished is noticed. */
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    loop->running = pthread_create(&loop->thread, NULL, run, loop) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return loop->running ? 0 : -1;
}

void rway_loop_stop(struct rway_loop *loop)
{
    uint64_t one = 1;
    if (!loop->running)
        return;
    __atomic_store_n(&loop->stopping, true, __ATOMIC_RELEASE);
    ssize_t ignored = write(loop->stop_fd, &one, sizeof one);
    (void)ignored;
    pthread_join(loop->thread, NULL);
    loop->running = false;
}

void rway_loop_free(struct rway_loop *loop)
{
    rway_loop_stop(loop);
    for (uint32_t i = 0; i < loop->job_count; i++)
        loop->jobs[i]->free(loop->jobs[i]);
    for (uint32_t i = 0; i < loop->hook_count; i++)
        if (loop->hooks[i]->free != NULL)
            loop->hooks[i]->free(loop->hooks[i]);
    if (loop->stop_fd >= 0)
        close(loop->stop_fd);
    rway_waiter_free(loop->waiter);
    free(loop);
}

void rway_loop_read(const struct rway_loop *loop, struct rway_loop_counts *counts)
{
    *counts = (struct rway_loop_counts){
        .iterations = rway_read_once(&loop->counts.iterations),
        .sleeps = rway_read_once(&loop->counts.sleeps),
        .frames = rway_read_once(&loop->counts.frames),
    };
}
