/*
 * The job of a queue pair: turns, sleep, and the pauses in which a session changes memory and rings.
 *
 * A session (its thread) and the loop's thread meet in one lock. Whoever wants it says so first, and the loop's thread
 * then stays away from it, so that a busy loop cannot keep a session waiting for longer than a burst.
 *
 * Kicks are eventfds of which the front end holds a copy. They are never read, because a read could be made to block:
 * an epoll instance of ours reports each new kick once. Before it sleeps the job tells the guest to kick, fences, and
 * looks again (rway_vring_listen); while it is awake the guest is told not to.
 */
#define _GNU_SOURCE
#include "pair.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct pair *pair_of(struct rway_job *job)
{
    return (struct pair *)job;
}

static void ring_eventfd(int fd)
{
    uint64_t one = 1;
    ssize_t ignored = write(fd, &one, sizeof one);
    (void)ignored;
}

static bool watch(struct pair *pair, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    return epoll_ctl(pair->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

/*
 * Only where a write cannot block now: the front end may have filled the counter, and its descriptor is shared with us,
 * flags and all. A full counter has been heard of anyway.
 */
void pair_call(struct pair *pair, uint32_t id)
{
    struct rway_vring *ring = &pair->rings[id];
    if (!rway_vring_wants_call(ring) || ring->call_fd < 0)
        return;
    struct pollfd room = {.fd = ring->call_fd, .events = POLLOUT};
    rway_write_once(&pair->state.notified[id], pair->state.notified[id] + 1);
    if (poll(&room, 1, 0) == 1 && room.revents == POLLOUT)
        ring_eventfd(ring->call_fd);
}

/* ---- the loop's thread ---- */

static bool enter(struct pair *pair)
{
    /* Acquire: pairs with the release in rway_pair_resume, as the lock does; here so as not to take it in vain. */
    return rway_load_acquire(&pair->paused) == 0 && pthread_mutex_trylock(&pair->lock) == 0;
}

static void leave(struct pair *pair)
{
    pthread_mutex_unlock(&pair->lock);
}

/* Memory that is gone reads as zeros, which would break a ring too, and for a reason that says less. */
static void look_after(struct pair *pair)
{
    bool vanished = pair->guest != NULL && rway_guest_vanished(pair->guest);
    for (int i = 0; i < 2; i++) {
        struct rway_vring *ring = &pair->rings[i];
        if (vanished && ring->started && ring->broken == RWAY_VRING_WHOLE)
            rway_vring_break(ring, RWAY_VRING_VANISHED);
        if (ring->broken == pair->state.broken[i])
            continue;
        rway_write_once(&pair->state.broken[i], ring->broken);
        ring_eventfd(pair->trouble_fd);
    }
}

static uint32_t run(struct rway_job *job)
{
    struct pair *pair = pair_of(job);
    if (!enter(pair))
        return 0;
    look_after(pair);
    for (int i = 0; i < 2; i++)
        if (rway_vring_runs(&pair->rings[i]))
            rway_vring_listen(&pair->rings[i], false);
    uint32_t moved = pair_receive(pair) + pair_transmit(pair);
    look_after(pair);
    leave(pair);
    return moved;
}

/* Ask to be kicked. True when there is more by now, or nobody will kick. */
static bool await_kick(struct rway_vring *ring)
{
    rway_vring_listen(ring, true);
    return rway_vring_has(ring) || ring->kick_fd < 0;
}

static bool arm_receive(struct pair *pair, struct rway_waiter *waiter)
{
    if (pair_receives(pair) && pair->starved)
        return await_kick(&pair->rings[RWAY_VRING_RECEIVE]);
    for (uint32_t i = 0; pair_receives(pair) && i < pair->source_count; i++)
        rway_waiter_add_consumer(waiter, pair->sources[i]);
    return false;
}

static bool arm_transmit(struct pair *pair, struct rway_waiter *waiter)
{
    struct rway_vring *ring = &pair->rings[RWAY_VRING_TRANSMIT];
    if (!rway_vring_runs(ring))
        return false;
    if (!pair->held)
        return await_kick(ring);
    rway_waiter_add_producer(waiter, pair->producer, rway_producer_slots(pair->producer, pair->held_len, 0));
    return false;
}

static void arm(struct rway_job *job, struct rway_waiter *waiter)
{
    struct pair *pair = pair_of(job);
    struct epoll_event events[4];
    epoll_wait(pair->epoll_fd, events, 4, 0); /* what was kicked so far has been seen, or is looked at below */
    rway_waiter_add_fd(waiter, pair->epoll_fd, POLLIN);
    if (!enter(pair))
        return; /* whoever resumes it wakes the loop */
    bool receive = arm_receive(pair, waiter), transmit = arm_transmit(pair, waiter);
    leave(pair);
    if (receive || transmit)
        ring_eventfd(pair->wake_fd);
}

/* ---- whoever sets it up ---- */

static void pair_free(struct rway_job *job)
{
    struct pair *pair = pair_of(job);
    int fds[] = {pair->epoll_fd, pair->wake_fd, pair->trouble_fd};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_mutex_destroy(&pair->lock);
    free(pair->whole);
    free(pair);
}

struct rway_job *rway_pair_new(struct rway_producer *producer, struct rway_consumer *consumer, uint32_t frame_max)
{
    struct pair *pair = calloc(1, sizeof *pair);
    if (pair == NULL)
        return NULL;
    pair->job = (struct rway_job){.run = run, .arm = arm, .free = pair_free};
    pair->producer = producer;
    pair->sources[0] = consumer;
    pair->source_count = 1;
    pair->frame_max = frame_max;
    pair->rings[RWAY_VRING_RECEIVE].writable = true;
    pthread_mutex_init(&pair->lock, NULL);
    pair->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    pair->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pair->trouble_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pair->epoll_fd < 0 || pair->wake_fd < 0 || pair->trouble_fd < 0 || !watch(pair, pair->wake_fd)) {
        pair_free(&pair->job);
        return NULL;
    }
    return &pair->job;
}

void rway_pair_pause(struct rway_job *job)
{
    struct pair *pair = pair_of(job);
    rway_store_release(&pair->paused, 1);
    pthread_mutex_lock(&pair->lock);
}

void rway_pair_resume(struct rway_job *job)
{
    struct pair *pair = pair_of(job);
    pthread_mutex_unlock(&pair->lock);
    rway_store_release(&pair->paused, 0);
    ring_eventfd(pair->wake_fd); /* what has changed may be work, and what is waited for may have */
}

int rway_pair_fits(const struct rway_job *job, const struct rway_guest *guest)
{
    const struct pair *pair = (const struct pair *)job;
    for (int i = 0; i < 2; i++)
        if (pair->rings[i].started && !rway_vring_lies_in(&pair->rings[i], guest))
            return 0;
    return 1;
}

int rway_pair_set_guest(struct rway_job *job, struct rway_guest *guest)
{
    struct pair *pair = pair_of(job);
    if (!rway_pair_fits(job, guest))
        return -1;
    for (int i = 0; i < 2; i++)
        if (pair->rings[i].started)
            rway_vring_place(&pair->rings[i], guest);
    pair->guest = guest;
    return 0;
}

int rway_pair_start(struct rway_job *job, uint32_t id, const struct rway_vring_setup *setup, struct rway_error *error)
{
    struct pair *pair = pair_of(job);
    if (id > RWAY_VRING_TRANSMIT || pair->rings[id].started)
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "ring", id, RWAY_VRING_TRANSMIT);
    int refused = rway_vring_start(&pair->rings[id], pair->guest, setup, error);
    if (!refused && id == RWAY_VRING_RECEIVE) {
        pair->cut = (struct rway_segmenter){0};
        pair->starved = false;
    }
    return refused;
}

static void forget_kick(struct pair *pair, struct rway_vring *ring)
{
    if (ring->kick_fd >= 0)
        epoll_ctl(pair->epoll_fd, EPOLL_CTL_DEL, ring->kick_fd, NULL);
    ring->kick_fd = -1;
}

uint32_t rway_pair_stop(struct rway_job *job, uint32_t id)
{
    struct pair *pair = pair_of(job);
    struct rway_vring *ring = &pair->rings[id];
    if (!ring->started)
        return 0;
    forget_kick(pair, ring);
    ring->started = false;
    ring->call_fd = -1;
    rway_write_once(&ring->broken, RWAY_VRING_WHOLE);
    rway_write_once(&pair->state.broken[id], RWAY_VRING_WHOLE);
    return rway_vring_base(ring);
}

int rway_pair_set_kick(struct rway_job *job, uint32_t id, int kick_fd)
{
    struct pair *pair = pair_of(job);
    forget_kick(pair, &pair->rings[id]);
    if (kick_fd >= 0 && !watch(pair, kick_fd))
        return -1;
    pair->rings[id].kick_fd = kick_fd;
    return 0;
}

void rway_pair_set_call(struct rway_job *job, uint32_t id, int call_fd)
{
    pair_of(job)->rings[id].call_fd = call_fd;
}

void rway_pair_enable(struct rway_job *job, uint32_t id, int enabled)
{
    pair_of(job)->rings[id].enabled = enabled != 0;
}

void rway_pair_set_sources(struct rway_job *job, struct rway_consumer *const *consumers, uint32_t count)
{
    struct pair *pair = pair_of(job);
    pair->source_count = count < RWAY_QUEUES_MAX ? count : RWAY_QUEUES_MAX;
    for (uint32_t i = 0; i < pair->source_count; i++)
        pair->sources[i] = consumers[i];
    pair->next_source = 0;
}

void rway_pair_set_full(struct rway_job *job, int drop)
{
    rway_write_once(&pair_of(job)->drops, drop != 0);
}

int rway_pair_uses(const struct rway_job *job, const struct rway_guest_region *region)
{
    const struct pair *pair = (const struct pair *)job;
    for (int i = 0; i < 2; i++) {
        const struct rway_vring_setup *setup = &pair->rings[i].setup;
        if (pair->rings[i].started &&
            (setup->desc - region->user < region->size || setup->avail - region->user < region->size ||
             setup->used - region->user < region->size))
            return 1;
    }
    return 0;
}

int rway_pair_trouble_fd(const struct rway_job *job)
{
    return ((const struct pair *)job)->trouble_fd;
}

void rway_pair_read(const struct rway_job *job, struct rway_pair_state *state)
{
    const struct pair *pair = (const struct pair *)job;
    for (int i = 0; i < 2; i++) {
        state->broken[i] = rway_read_once(&pair->state.broken[i]);
        state->moved[i] = rway_read_once(&pair->state.moved[i]);
        state->notified[i] = rway_read_once(&pair->state.notified[i]);
    }
    state->returned = rway_read_once(&pair->state.returned);
    state->unfit = rway_read_once(&pair->state.unfit);
}
