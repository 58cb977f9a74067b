/*
 * How long a job waits before a full ring. Before a dead end the last of a chain gives up, and no other, whenever each
 * of them happens to look; a circle in which all wait comes apart within a stated time. First in a time of the test's
 * own, then with forwarders, which say how many wait behind them and are not made to wait longer by a word that lies.
 */
/* arguments: */
#define _GNU_SOURCE
#include <time.h>

#include "restart.h"
#include "stack/patience.h"

enum { MS = 1000 * 1000, LASTS_MS = 1000, WAKES_MS = 80, CHAIN_MAX = RWAY_STALL_MAX + 1, TRIALS = 50 };

/* ---- in a time of its own: hop i waits for hop i + 1, and in a circle the last for the first ---- */

struct hop {
    struct rway_patience patience;
    uint64_t tail;     /* of the ring that it fills */
    uint64_t looks_ms; /* at the latest */
    uint32_t stalled;  /* as it says to the hop before it */
};

/* Let it look, as a forwarder with frames and no room does. Returns whether it gives up. */
static bool look(struct hop *hop, uint32_t behind, uint64_t now_ms, uint64_t random)
{
    bool over = rway_patience_is_over(&hop->patience, hop->tail, behind, now_ms * MS);
    hop->stalled = over ? 0 : behind < RWAY_STALL_MAX ? behind + 1 : RWAY_STALL_MAX;
    hop->looks_ms = now_ms + random % WAKES_MS + 1;
    return over;
}

/*
 * Until each ring has stood still for ten seconds, whoever looks first, except for the one before the dead end. A ring
 * moves when the hop behind it gives up and drops what is in there. Returns which hops gave up, a bit each.
 */
static uint32_t who_gives_up(uint32_t count, uint64_t random)
{
    enum { FILLS_MS = 5, UNTIL_MS = 10 * LASTS_MS };
    struct hop hops[CHAIN_MAX] = {0};
    uint32_t gave_up = 0;
    for (uint32_t i = 0; i < count; i++) { /* the rings fill from the dead end on */
        rway_patience_set(&hops[i].patience, LASTS_MS * 1000);
        hops[i].looks_ms = (uint64_t)(count - i) * FILLS_MS;
    }
    for (uint64_t now = 1; now < UNTIL_MS; now++)
        for (uint32_t n = 0; n < count; n++) {
            uint32_t i = random % 2 ? n : count - 1 - n;
            random = mix(random);
            if (now < hops[i].looks_ms || !look(&hops[i], i + 1 < count ? hops[i + 1].stalled : 0, now, random))
                continue;
            gave_up |= 1u << i;
            for (uint32_t before = i; before-- != 0; hops[before].stalled = 0, hops[before].looks_ms = now)
                hops[before].tail++; /* what it drops makes room for all before it, whose bells ring */
        }
    return gave_up;
}

static void before_a_dead_end_the_last_of_a_chain_gives_up_and_no_other(void)
{
    for (uint32_t count = 1; count <= CHAIN_MAX; count++)
        for (uint64_t trial = 0; trial < TRIALS; trial++) {
            uint32_t gave_up = who_gives_up(count, mix(count * TRIALS + trial));
            CHECK(gave_up == 1u << (count - 1), "of %u hops these gave up: %x", count, gave_up);
        }
}

static void one_of_a_circle_gives_up_within_the_longest_patience(void)
{
    enum { CIRCLE = 3, LONGEST_MS = LASTS_MS * (1 + RWAY_STALL_MAX) };
    for (uint64_t trial = 0; trial < TRIALS; trial++) {
        struct hop hops[CIRCLE] = {0};
        uint64_t random = mix(trial), now = 1;
        bool over = false;
        for (uint32_t i = 0; i < CIRCLE; i++)
            rway_patience_set(&hops[i].patience, LASTS_MS * 1000);
        for (; !over && now < 10 * LONGEST_MS; now++)
            for (uint32_t i = 0; i < CIRCLE && !over; i++) {
                random = mix(random);
                if (now >= hops[i].looks_ms)
                    over = look(&hops[i], hops[(i + 1) % CIRCLE].stalled, now, random);
            }
        CHECK(over && now <= LONGEST_MS + WAKES_MS + 2, "after %lu ms", (unsigned long)now);
    }
}

/* Look each 50 ms for so long. Returns what came of the last look; each before that is to have gone on waiting. */
static bool look_on(struct rway_patience *patience, uint64_t tail, uint32_t behind, uint64_t *now_ms, uint64_t for_ms)
{
    bool over = false;
    for (uint64_t until = *now_ms + for_ms; *now_ms < until;) {
        CHECK(!over, "it is over before %lu ms", (unsigned long)*now_ms);
        *now_ms += 50;
        over = rway_patience_is_over(patience, tail, behind, *now_ms * MS);
    }
    return over;
}

static void who_was_given_up_on_is_waited_for_again_only_once_it_moves(void)
{
    struct rway_patience patience = {.lasts_ns = LASTS_MS * (uint64_t)MS};
    uint64_t now = 0;
    CHECK(!look_on(&patience, 7, 0, &now, LASTS_MS), "too early");
    CHECK(look_on(&patience, 7, 0, &now, 50), "it is waited for without end");
    CHECK(look_on(&patience, 7, RWAY_STALL_MAX, &now, 50), "for a word");
    CHECK(look_on(&patience, 7, 0, &now, 50), "for a word taken back");
    CHECK(!look_on(&patience, 8, 0, &now, 50), "it has moved");
}

/* Killed while it waited, and started again: what it said last stands until then, and then it has yet to look. */
static void who_waits_no_more_is_given_time_from_then_on(void)
{
    struct rway_patience patience = {.lasts_ns = LASTS_MS * (uint64_t)MS};
    uint64_t now = 0;
    CHECK(!look_on(&patience, 7, 1, &now, LASTS_MS * 3 / 2), "too early for two in a row");
    CHECK(!look_on(&patience, 7, 0, &now, LASTS_MS), "it was started again");
    CHECK(look_on(&patience, 7, 0, &now, 50), "it is waited for without end");
}

static void a_time_in_which_nobody_looked_counts_as_a_moment(void)
{
    struct rway_patience patience = {.lasts_ns = LASTS_MS * (uint64_t)MS};
    uint64_t now = 0;
    CHECK(!look_on(&patience, 7, 0, &now, LASTS_MS / 2), "too early");
    now += 3600 * 1000; /* the machine stood still */
    CHECK(!look_on(&patience, 7, 0, &now, LASTS_MS / 4), "it gives up who had no processor");
    CHECK(!look_on(&patience, 7, 0, &now, LASTS_MS / 10), "too early");
    CHECK(!look_on(&patience, 7, 0, &now, LASTS_MS / 10), "too early");
    CHECK(look_on(&patience, 7, 0, &now, 50), "it is waited for without end");
}

/* ---- with forwarders, one after the other ---- */

static const struct rway_geometry SMALL = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};
enum { HOPS = 3, NEVER_US = 1000 * 1000 * 1000 };

struct chain {
    int fds[HOPS + 1];
    struct rway_region *a[HOPS + 1], *b[HOPS + 1]; /* frames go from a to b */
    struct forwarder hops[HOPS];
};

static void open_chain(struct chain *chain, uint64_t patience_us)
{
    for (uint64_t i = 0; i <= HOPS; i++) {
        chain->fds[i] = rway_region_create(&SMALL, FIRST_LINK + i, 0, NULL);
        chain->a[i] = attach(chain->fds[i], &SMALL, FIRST_LINK + i, RWAY_SIDE_A);
        chain->b[i] = attach(chain->fds[i], &SMALL, FIRST_LINK + i, RWAY_SIDE_B);
    }
    for (uint32_t i = 0; i < HOPS; i++)
        open_forwarder(&chain->hops[i], chain->b[i], chain->a[i + 1], patience_us);
}

static void close_chain(struct chain *chain)
{
    for (uint32_t i = 0; i <= HOPS; i++) {
        rway_region_detach(chain->a[i]);
        rway_region_detach(chain->b[i]);
        close(chain->fds[i]);
    }
}

static struct rway_ring_control *control_of(const struct chain *chain, uint32_t link)
{
    return rway_region_consumer(chain->b[link], 0)->ring.control;
}

/* Returns whether anything moved. */
static bool send_and_forward(struct chain *chain)
{
    struct rway_producer *first = rway_region_producer(chain->a[0], 0);
    struct rway_frame frames[RWAY_BURST];
    uint32_t moved = claim_numbered(first, frames, RWAY_BURST, 0);
    rway_ring_publish(first, frames, moved);
    for (uint32_t i = 0; i < HOPS; i++)
        moved += run_forwarder(&chain->hops[i]);
    return moved != 0;
}

static void each_says_how_many_wait_from_it_on_and_takes_it_back(void)
{
    struct chain chain;
    open_chain(&chain, NEVER_US);
    while (send_and_forward(&chain))
        ;
    for (uint32_t turn = 0; turn < HOPS; turn++) /* word by word, from the end on */
        for (uint32_t i = 0; i < HOPS; i++)
            run_forwarder(&chain.hops[i]);
    for (uint64_t i = 0; i <= HOPS; i++)
        CHECK(rway_read_once(&control_of(&chain, (uint32_t)i)->stalled) == HOPS - i, "link %lu: %lu", (unsigned long)i,
              (unsigned long)control_of(&chain, (uint32_t)i)->stalled);
    struct rway_frame frames[RWAY_BURST];
    rway_ring_peek(rway_region_consumer(chain.b[HOPS], 0), frames, RWAY_BURST);
    rway_ring_release(rway_region_consumer(chain.b[HOPS], 0));
    run_forwarder(&chain.hops[HOPS - 1]);
    CHECK(rway_read_once(&control_of(&chain, HOPS - 1)->stalled) == 0, "it goes on, and says that it waits");
    close_forwarder(&chain.hops[0]);
    CHECK(rway_read_once(&control_of(&chain, 0)->stalled) == 0, "it is gone, and says that it waits");
    rway_write_once(&control_of(&chain, 1)->stalled, 3); /* killed while it waited */
    rway_region_detach(chain.b[1]);
    chain.b[1] = attach(chain.fds[1], &SMALL, FIRST_LINK + 1, RWAY_SIDE_B);
    CHECK(rway_read_once(&control_of(&chain, 1)->stalled) == 0, "its next incarnation does not wait");
    free(chain.hops[1].jobs[0]); /* its ring is gone */
    rway_pipeline_hook(chain.hops[1].pipelines[0])->free(rway_pipeline_hook(chain.hops[1].pipelines[0]));
    rway_filter_free(chain.hops[1].filter);
    close_forwarder(&chain.hops[2]);
    close_chain(&chain);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / MS;
}

static void a_word_that_cannot_be_is_taken_for_the_largest(void)
{
    enum { SHORT_MS = 20, LONGEST_MS = SHORT_MS * (1 + RWAY_STALL_MAX), AWAIT_MS = 60 * 1000 };
    struct chain chain;
    open_chain(&chain, SHORT_MS * 1000);
    rway_write_once(&control_of(&chain, HOPS)->stalled, UINT64_MAX);
    uint64_t started = now_ms();
    const struct rway_producer *last = rway_region_producer(chain.a[HOPS], 0);
    CHECK(rway_producer_stalled(last) == RWAY_STALL_MAX, "%u", rway_producer_stalled(last));
    while (last->counts.drops[RWAY_DROP_FULL] == 0) {
        CHECK(now_ms() - started < AWAIT_MS, "it is waited for without end");
        send_and_forward(&chain);
    }
    CHECK(now_ms() - started >= LONGEST_MS, "it was waited for %lu ms", (unsigned long)(now_ms() - started));
    for (uint32_t i = 0; i < HOPS; i++)
        close_forwarder(&chain.hops[i]);
    close_chain(&chain);
}

int main(void)
{
    before_a_dead_end_the_last_of_a_chain_gives_up_and_no_other();
    one_of_a_circle_gives_up_within_the_longest_patience();
    who_was_given_up_on_is_waited_for_again_only_once_it_moves();
    who_waits_no_more_is_given_time_from_then_on();
    a_time_in_which_nobody_looked_counts_as_a_moment();
    each_says_how_many_wait_from_it_on_and_takes_it_back();
    a_word_that_cannot_be_is_taken_for_the_largest();
    return 0;
}
