/*
 * Bells: how one end wakes the other.
 *
 * A local bell is a pipe: the ringer holds the write end, the sleeper the read end, and neither can change the flags
 * of the other's. When to ring and when to sleep is in wait.c.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

void rway_bell_ring(struct rway_bell *bell, struct rway_counts *counts, uint64_t *dirty)
{
    if (bell->ring_fd < 0)
        return;
    counts->bells++;
    *dirty |= rway_counts_bit(bells);
    /* A full pipe is a bell that has rung already; a closed one is a peer that needs no bell. */
    ssize_t ignored = write(bell->ring_fd, "", 1);
    (void)ignored;
}

void rway_bell_close(struct rway_bell *bell)
{
    if (bell->wait_fd >= 0)
        close(bell->wait_fd);
    if (bell->ring_fd >= 0)
        close(bell->ring_fd);
    bell->wait_fd = bell->ring_fd = -1;
}

/* A bell must be a pipe: on a file poll would say "ready" for ever, and a write would grow it. */
static int set_bell(struct rway_bell *bell, int wait_fd, int ring_fd, struct rway_error *error)
{
    const int fds[] = {wait_fd, ring_fd};
    for (int i = 0; i < 2; i++) {
        struct stat status;
        if (fds[i] < 0)
            continue;
        if (fstat(fds[i], &status) != 0)
            return rway_refuse_errno(error, "fstat of a bell");
        if (!S_ISFIFO(status.st_mode))
            return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "kind of a bell", status.st_mode & S_IFMT, S_IFIFO);
        /* The flag is this end's own: the other end of a pipe cannot make our write or read block. */
        if (fcntl(fds[i], F_SETFL, fcntl(fds[i], F_GETFL) | O_NONBLOCK) != 0)
            return rway_refuse_errno(error, "O_NONBLOCK of a bell");
    }
    rway_bell_close(bell);
    *bell = (struct rway_bell){.wait_fd = wait_fd, .ring_fd = ring_fd};
    return 0;
}

/*
 * And ring, unless the counter never moved: an end before this one may have been killed after it stored its counter and
 * before it rang for that, and the new one takes the counter as looked at. Where nobody sleeps that costs a look.
 */
int rway_producer_bells(struct rway_producer *producer, int wait_fd, int ring_fd, struct rway_error *error)
{
    int refused = set_bell(&producer->bell, wait_fd, ring_fd, error);
    if (!refused && producer->head != 0)
        rway_bell_ring(&producer->bell, &producer->counts, &producer->dirty);
    return refused;
}

int rway_consumer_bells(struct rway_consumer *consumer, int wait_fd, int ring_fd, struct rway_error *error)
{
    int refused = set_bell(&consumer->bell, wait_fd, ring_fd, error);
    if (!refused && consumer->tail != 0)
        rway_bell_ring(&consumer->bell, &consumer->counts, &consumer->dirty);
    return refused;
}
