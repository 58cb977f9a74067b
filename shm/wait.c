/*
 * The one function that sleeps, for producers and consumers alike.
 *
 * A sleeper publishes the counter value it wants to be woken at, fences, looks again, and only then sleeps; a ringer
 * moves its counter, fences, and looks at that value. One of the two always sees the other.
 *
 *      sleeper                          ringer
 *      wake word := wanted              counter := new
 *      full fence                       full fence
 *      counter reached? then no sleep   wake word in (old, new]? then write one byte
 *      poll, bounded
 *
 * The value is not taken back after waking: the counter has passed it, so it can ring no second time. A lost bell
 * costs at most the bound, because a peer's goodwill is not what a sleep should end by: 10 ms, growing to 80 ms
 * over a second in which nothing comes, so that many idle queues do not add up to a busy core.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum {
    RINGS_MAX = 2 * RWAY_QUEUES_MAX * 4,
    FDS_MAX = 64,
    IDLE_STREAK_MAX = 64,       /* bells without work before a sleeper stops listening */
    MUTE_NS = 100 * 1000 * 1000 /* and for how long it does */
};
static const uint64_t BOUND_NS = 10 * 1000 * 1000;
enum { DOUBLE_AFTER = 16, DOUBLE_MAX = 3 }; /* sleeps without work until the bound doubles, and how often it does */
static const uint64_t MUTED_BOUND_NS = 1000 * 1000;

/* One ring waited for. Exactly one of the two is set. */
struct sleeper {
    struct rway_consumer *consumer;
    struct rway_producer *producer;
    uint64_t wanted; /* tail, for a producer */
    int poll_at;     /* index in fds, or -1 */
};

struct rway_waiter {
    struct sleeper sleepers[RINGS_MAX];
    uint32_t sleeper_count;
    uint32_t fd_count; /* the caller's own, at the start of fds */
    uint32_t idle;     /* sleeps in a row that ended without work */
    struct pollfd fds[FDS_MAX + RINGS_MAX];
};

struct rway_waiter *rway_waiter_new(void)
{
    return calloc(1, sizeof(struct rway_waiter));
}

void rway_waiter_free(struct rway_waiter *waiter)
{
    free(waiter);
}

void rway_waiter_reset(struct rway_waiter *waiter)
{
    waiter->sleeper_count = 0;
    waiter->fd_count = 0;
}

static struct sleeper *next_sleeper(struct rway_waiter *waiter)
{
    return waiter->sleeper_count < RINGS_MAX ? &waiter->sleepers[waiter->sleeper_count++] : NULL;
}

int rway_waiter_add_consumer(struct rway_waiter *waiter, struct rway_consumer *consumer)
{
    struct sleeper *sleeper = next_sleeper(waiter);
    if (sleeper == NULL)
        return -1;
    *sleeper = (struct sleeper){.consumer = consumer, .poll_at = -1};
    return 0;
}

int rway_waiter_add_producer(struct rway_waiter *waiter, struct rway_producer *producer, uint32_t slots)
{
    struct sleeper *sleeper = next_sleeper(waiter);
    if (sleeper == NULL)
        return -1;
    /* Sleep until half the ring is free, or more if so many slots are needed: waking for each slot would halve both. */
    uint64_t needed = producer->claimed + slots - producer->ring.slot_count;
    uint64_t half_free = producer->head - producer->ring.slot_count / 2;
    uint64_t wanted = (int64_t)(half_free - needed) > 0 ? half_free : needed;
    *sleeper = (struct sleeper){.producer = producer, .wanted = wanted, .poll_at = -1};
    return 0;
}

int rway_waiter_add_fd(struct rway_waiter *waiter, int fd, short events)
{
    if (waiter->fd_count == FDS_MAX)
        return -1;
    waiter->fds[waiter->fd_count++] = (struct pollfd){.fd = fd, .events = events};
    return 0;
}

static struct rway_bell *bell_of(const struct sleeper *sleeper)
{
    return sleeper->consumer ? &sleeper->consumer->bell : &sleeper->producer->bell;
}

static const struct rway_ring *ring_of(const struct sleeper *sleeper)
{
    return sleeper->consumer ? &sleeper->consumer->ring : &sleeper->producer->ring;
}

/* To change what a sleeper counts of its sleep. */
static struct rway_counts *counts_of(struct sleeper *sleeper)
{
    const uint64_t changing = rway_counts_bit(sleeps) | rway_counts_bit(bells_idle) | rway_counts_bit(mutes);
    if (sleeper->consumer) {
        sleeper->consumer->dirty |= changing;
        return &sleeper->consumer->counts;
    }
    sleeper->producer->dirty |= changing;
    return &sleeper->producer->counts;
}

static void arm(struct sleeper *sleeper)
{
    struct rway_ring_control *control = ring_of(sleeper)->control;
    if (sleeper->consumer)
        rway_write_once(&control->wake_consumer, sleeper->consumer->cursor + 1);
    else
        rway_write_once(&control->wake_producer, sleeper->wanted);
}

/* Only a hint: what the counter really allows is checked by the next peek or claim. A broken ring is never work. */
static bool has_work(const struct sleeper *sleeper)
{
    const struct rway_ring *ring = ring_of(sleeper);
    if (sleeper->consumer && rway_segmenter_next_len(&sleeper->consumer->cut) != 0)
        return true; /* private, whatever became of the ring */
    if (!rway_ring_whole(ring))
        return false;
    if (sleeper->consumer)
        return rway_read_once(&ring->control->head) != sleeper->consumer->cursor;
    return (int64_t)(rway_read_once(&ring->control->tail) - sleeper->wanted) >= 0;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Empty the pipe, one page of it at most: a ringer cannot keep us reading. */
static void drain(int fd)
{
    char bytes[4096];
    ssize_t ignored = read(fd, bytes, sizeof bytes);
    (void)ignored;
}

/* Put the bell into the poll set, unless it is not listened to just now. Shortens the bound where it must. */
static void listen_to(struct rway_waiter *waiter, struct sleeper *sleeper, uint32_t *poll_count, uint64_t *bound_ns)
{
    struct rway_bell *bell = bell_of(sleeper);
    uint32_t doubled = waiter->idle / DOUBLE_AFTER;
    uint64_t longest = BOUND_NS << (doubled < DOUBLE_MAX ? doubled : DOUBLE_MAX);
    if (*bound_ns > longest)
        *bound_ns = longest;
    if (bell->wait_fd < 0 || bell->muted_until_ns == UINT64_MAX)
        return;
    if (bell->muted_until_ns != 0) {
        if (now_ns() < bell->muted_until_ns) {
            if (*bound_ns > MUTED_BOUND_NS)
                *bound_ns = MUTED_BOUND_NS;
            return;
        }
        bell->muted_until_ns = 0;
        drain(bell->wait_fd);
    }
    sleeper->poll_at = (int)*poll_count;
    waiter->fds[(*poll_count)++] = (struct pollfd){.fd = bell->wait_fd, .events = POLLIN};
}

/* After a sleep: empty a bell that rang, and stop listening to one that keeps ringing for nothing. */
static bool answer(struct rway_waiter *waiter, struct sleeper *sleeper)
{
    bool work = has_work(sleeper);
    if (sleeper->poll_at < 0 || waiter->fds[sleeper->poll_at].revents == 0)
        return work;
    struct rway_bell *bell = bell_of(sleeper);
    if (!(waiter->fds[sleeper->poll_at].revents & POLLIN)) {
        bell->muted_until_ns = UINT64_MAX; /* POLLHUP, POLLERR: nobody can ring it any more */
        return work;
    }
    drain(bell->wait_fd);
    if (work) {
        bell->idle_streak = 0;
        return true;
    }
    counts_of(sleeper)->bells_idle++;
    if (++bell->idle_streak == IDLE_STREAK_MAX) {
        bell->idle_streak = 0;
        bell->muted_until_ns = now_ns() + MUTE_NS;
        counts_of(sleeper)->mutes++;
    }
    return false;
}

static void publish_counts(struct sleeper *sleeper)
{
    counts_of(sleeper)->sleeps++;
    if (sleeper->consumer)
        rway_consumer_show_counts(sleeper->consumer);
    else
        rway_producer_show_counts(sleeper->producer);
}

int rway_waiter_wait(struct rway_waiter *waiter, uint64_t bound_us)
{
    for (uint32_t i = 0; i < waiter->sleeper_count; i++)
        arm(&waiter->sleepers[i]);
    /* Pairs with the fences in rway_producer_settle and rway_consumer_settle. */
    rway_full_fence();
    for (uint32_t i = 0; i < waiter->sleeper_count; i++)
        if (has_work(&waiter->sleepers[i])) {
            bell_of(&waiter->sleepers[i])->idle_streak = 0; /* its bell comes late, but it did not ring for nothing */
            waiter->idle = 0;
            return 1;
        }

    uint64_t bound_ns = bound_us > UINT64_MAX / 1000 ? UINT64_MAX : bound_us * 1000;
    uint32_t poll_count = waiter->fd_count;
    for (uint32_t i = 0; i < waiter->sleeper_count; i++) {
        publish_counts(&waiter->sleepers[i]);
        listen_to(waiter, &waiter->sleepers[i], &poll_count, &bound_ns);
    }
    struct timespec bound = {.tv_sec = (time_t)(bound_ns / 1000000000u), .tv_nsec = (long)(bound_ns % 1000000000u)};
    if (ppoll(waiter->fds, poll_count, bound_ns == UINT64_MAX ? NULL : &bound, NULL) < 0) {
        /* Out of memory, or more descriptors than this process may have: no reason to spin. */
        if (errno != EINTR)
            nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
        return 0;
    }
    int work = 0;
    for (uint32_t i = 0; i < waiter->fd_count; i++)
        work |= waiter->fds[i].revents != 0;
    for (uint32_t i = 0; i < waiter->sleeper_count; i++)
        work |= answer(waiter, &waiter->sleepers[i]);
    waiter->idle = work ? 0 : waiter->idle + 1;
    return work;
}
