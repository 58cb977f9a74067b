/*
 * A peer that rings bells without work cannot keep a sleeper awake. The sleeper stops listening, says so in its
 * counters, still finds frames within its bounded sleeps, and listens again later. Counted in bells and wake-ups, not
 * in seconds, so that a slow machine changes nothing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"

enum { LINK = 7, STREAK = 64 /* bells without work before a sleeper stops listening */, BELLS = 400000 };

static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};

struct victim {
    int fd;
    struct rway_region *region, *peer;
    struct rway_consumer *consumer;
    struct rway_producer *producer;
    struct rway_waiter *waiter;
    int bell; /* write end */
};

static struct victim make_victim(void)
{
    struct rway_error error;
    struct victim victim;
    int ends[2];
    victim.fd = rway_region_create(&GEOMETRY, LINK, 0, &error);
    victim.region = rway_region_attach(victim.fd, &GEOMETRY, LINK, RWAY_SIDE_A, 1, &error);
    victim.peer = rway_region_attach(victim.fd, &GEOMETRY, LINK, RWAY_SIDE_B, 1, &error);
    CHECK(victim.region != NULL && victim.peer != NULL, "%s", error.what);
    victim.consumer = rway_region_consumer(victim.region, 0);
    victim.producer = rway_region_producer(victim.region, 0);
    victim.waiter = rway_waiter_new();
    CHECK(pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0, "pipe");
    CHECK(rway_consumer_bells(victim.consumer, ends[0], -1, &error) == 0, "%s", error.what);
    victim.bell = ends[1];
    return victim;
}

static void end_victim(struct victim *victim)
{
    rway_waiter_free(victim->waiter);
    rway_region_detach(victim->region);
    rway_region_detach(victim->peer);
    close(victim->fd);
    close(victim->bell);
}

static int sleep_once(struct victim *victim, uint64_t bound_us)
{
    rway_waiter_reset(victim->waiter);
    rway_waiter_add_consumer(victim->waiter, victim->consumer);
    return rway_waiter_wait(victim->waiter, bound_us);
}

static void ring(const struct victim *victim)
{
    ssize_t ignored = write(victim->bell, "", 1);
    (void)ignored;
}

static void send_one(const struct victim *victim)
{
    static const uint8_t bytes[60];
    const uint32_t len = 60;
    CHECK(rway_frames_copy_in(rway_region_producer(victim->peer, 0), bytes, &len, 1) == 1, "send");
}

static uint32_t take(const struct victim *victim)
{
    struct rway_frame frames[8];
    uint32_t taken = rway_ring_peek(victim->consumer, frames, 8);
    rway_ring_release(victim->consumer);
    return taken;
}

/* The state that bells put a sleeper into, step by step. */
static void a_sleeper_stops_listening_after_a_streak_and_no_sooner(void)
{
    struct victim victim = make_victim();
    const struct rway_counts *counts = &victim.consumer->counts;
    for (int bell = 0; bell < STREAK - 1; bell++) {
        ring(&victim);
        CHECK(sleep_once(&victim, 1000000) == 0, "work");
    }
    CHECK(counts->bells_idle == STREAK - 1 && counts->mutes == 0, "idle %lu", (unsigned long)counts->bells_idle);
    send_one(&victim); /* work between them: the streak starts again */
    ring(&victim);
    CHECK(sleep_once(&victim, 1000000) == 1 && take(&victim) == 1, "no work");
    CHECK(sleep_once(&victim, 1000000) == 0, "the bell that came with the frame");
    CHECK(counts->mutes == 0, "muted by %lu", (unsigned long)counts->bells_idle);
    while (counts->mutes == 0) {
        ring(&victim);
        CHECK(sleep_once(&victim, 1000000) == 0, "work");
        CHECK(counts->bells_idle <= 2 * STREAK, "not muted by %lu", (unsigned long)counts->bells_idle);
    }
    CHECK(victim.consumer->bell.muted_until_ns != 0, "still listening");
    send_one(&victim);
    CHECK(sleep_once(&victim, 1000000) == 1 && take(&victim) == 1, "a muted sleeper did not see the frame");
    /* In time it listens again: bells that have piled up are forgotten first. */
    while (victim.consumer->bell.muted_until_ns != 0)
        sleep_once(&victim, 1000000);
    ring(&victim);
    uint64_t idle = counts->bells_idle;
    CHECK(sleep_once(&victim, 1000000) == 0 && counts->bells_idle == idle + 1, "it does not listen again");
    end_victim(&victim);
}

static void a_bell_whose_ringer_is_gone_is_not_listened_to(void)
{
    struct victim victim = make_victim();
    close(victim.bell);
    sleep_once(&victim, 1000);
    uint64_t sleeps = victim.consumer->counts.sleeps;
    CHECK(victim.consumer->bell.muted_until_ns == UINT64_MAX, "listening to a closed pipe");
    send_one(&victim);
    CHECK(sleep_once(&victim, 1000) == 1 && take(&victim) == 1, "frame");
    CHECK(sleep_once(&victim, 1000) == 0 && victim.consumer->counts.sleeps == sleeps + 1, "sleep");
    victim.bell = dup(1);
    end_victim(&victim);
}

static pid_t fork_storm(const struct victim *victim)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    alarm(0);
    for (int bell = 0; bell < BELLS; bell++)
        ring(victim);
    _exit(0);
}

static void a_storm_wakes_a_sleeper_hardly_ever(void)
{
    struct victim victim = make_victim();
    const struct rway_counts *counts = &victim.consumer->counts;
    uint64_t wakes = 0;
    int status = 0;
    pid_t storm = fork_storm(&victim);
    while (waitpid(storm, &status, WNOHANG) == 0) {
        CHECK(sleep_once(&victim, 1000000) == 0, "work");
        wakes++;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the storm: %#x", status);
    CHECK(counts->mutes >= 1, "never muted in %d bells", BELLS);
    CHECK(counts->bells_idle < STREAK * (counts->mutes + 1), "%lu idle bells, %lu mutes",
          (unsigned long)counts->bells_idle, (unsigned long)counts->mutes);
    CHECK(wakes < BELLS / 40, "%lu wake-ups by %d bells", (unsigned long)wakes, BELLS);
    struct rway_snapshot snapshot;
    struct rway_ring_snapshot shown;
    CHECK(rway_region_read(victim.fd, &snapshot, NULL) == 0, "read");
    CHECK(rway_ring_read(victim.fd, &snapshot, RWAY_SIDE_B, 0, &shown, NULL) == 0, "read");
    CHECK(shown.consumed.mutes >= 1, "nobody can see that it was muted");
    send_one(&victim);
    CHECK(sleep_once(&victim, 1000000) == 1 && take(&victim) == 1, "no frame after the storm");
    printf("%d bells: %lu wake-ups, %lu idle, %lu mutes\n", BELLS, (unsigned long)wakes,
           (unsigned long)counts->bells_idle, (unsigned long)counts->mutes);
    end_victim(&victim);
}

/* The wake words are the peer's to read and ours to write; whatever it makes of them, our own bells stay few. */
static void a_wake_word_that_always_asks_costs_one_bell_per_publish(void)
{
    struct victim victim = make_victim();
    struct rway_ring_control *control = victim.producer->ring.control;
    int ends[2];
    CHECK(pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0, "pipe");
    CHECK(rway_producer_bells(victim.producer, -1, ends[1], NULL) == 0, "bells");
    for (uint64_t turn = 0; turn < 10000; turn++) {
        struct rway_frame frame = {.len = 60};
        rway_write_once(&control->wake_consumer, turn + 1);
        rway_write_once(&control->tail, turn);
        CHECK(rway_ring_claim(victim.producer, &frame, 1) == 1, "claim");
        rway_ring_publish(victim.producer, &frame, 1); /* and nobody ever drains: it must not block */
    }
    CHECK(victim.producer->counts.bells == 10000, "%lu bells", (unsigned long)victim.producer->counts.bells);
    CHECK(!rway_region_broken(victim.region), "broken");
    close(ends[0]);
    end_victim(&victim);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    alarm(60);
    a_sleeper_stops_listening_after_a_streak_and_no_sooner();
    a_bell_whose_ringer_is_gone_is_not_listened_to();
    a_wake_word_that_always_asks_costs_one_bell_per_publish();
    a_storm_wakes_a_sleeper_hardly_ever();
    return 0;
}
