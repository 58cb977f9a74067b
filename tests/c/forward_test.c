/*
 * A forwarder whose output is full leaves frames in its input: none is lost or judged twice, and each that goes on does
 * so in order. It waits for a consumer that moves, and not for one that stands still; it holds up neither the other
 * direction nor the thread, and a circle of forwarders that is full in all its rings comes apart.
 */
/* arguments: */
/* variants: tsan */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

#include "restart.h"

enum { SHORT_MS = 100, AWAIT_S = 60, NEVER_US = 1000 * 1000 * 1000 };

static const struct rway_geometry WIDE = {.queues = 1, .slot_count = 256, .slot_payload = 256, .headroom = 64};
static const struct rway_geometry NARROW = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- a link with both ends here; frames go from side a to side b ---- */

struct link {
    int fd;
    struct rway_region *a, *b;
};

static struct link open_link(const struct rway_geometry *geometry, uint64_t link_id)
{
    struct link link = {.fd = rway_region_create(geometry, link_id, 0, NULL)};
    CHECK(link.fd >= 0, "create");
    link.a = attach(link.fd, geometry, link_id, RWAY_SIDE_A);
    link.b = attach(link.fd, geometry, link_id, RWAY_SIDE_B);
    return link;
}

static void close_link(struct link *link)
{
    rway_region_detach(link->a);
    rway_region_detach(link->b);
    close(link->fd);
}

static uint32_t send_some(struct rway_region *region, uint32_t count, uint64_t number)
{
    struct rway_frame frames[RWAY_BURST];
    struct rway_producer *producer = rway_region_producer(region, 0);
    uint32_t claimed = claim_numbered(producer, frames, count < RWAY_BURST ? count : RWAY_BURST, number);
    rway_ring_publish(producer, frames, claimed);
    return claimed;
}

/* Take frames out, which are those that follow *number and are not denied. */
static uint32_t receive_some(struct rway_region *region, uint32_t count, uint64_t *number)
{
    struct rway_frame frames[RWAY_BURST];
    struct rway_consumer *consumer = rway_region_consumer(region, 0);
    uint32_t taken = rway_ring_peek(consumer, frames, count < RWAY_BURST ? count : RWAY_BURST);
    for (uint32_t i = 0; i < taken; i++, ++*number) {
        while (is_denied(*number))
            ++*number;
        CHECK(number_in(&frames[i]) == *number, "frame %lu where %lu was due", (unsigned long)number_in(&frames[i]),
              (unsigned long)*number);
    }
    rway_ring_release(consumer);
    return taken;
}

/* ---- what is tried ---- */

struct way {
    struct link in, out;
    struct forwarder forwarder;
};

static void open_way(struct way *way, uint64_t patience_us)
{
    way->in = open_link(&WIDE, FIRST_LINK);
    way->out = open_link(&NARROW, SECOND_LINK);
    open_forwarder(&way->forwarder, way->in.b, way->out.a, patience_us);
}

static void close_way(struct way *way)
{
    close_forwarder(&way->forwarder);
    close_link(&way->in);
    close_link(&way->out);
}

static uint64_t dropped_as_full(const struct way *way)
{
    return rway_region_producer(way->out.a, 0)->counts.drops[RWAY_DROP_FULL];
}

static void a_slow_consumer_loses_nothing_and_each_frame_is_judged_once(void)
{
    enum { FRAMES = 20000 };
    struct way way;
    uint64_t random = 1, sent = 0, due = 0, received = 0, denied = 0;
    bool waited = false;
    open_way(&way, NEVER_US);
    for (uint64_t number = 0; number < FRAMES; number++)
        denied += is_denied(number);
    while (received < FRAMES - denied) {
        random = mix(random);
        if (sent < FRAMES)
            sent += send_some(way.in.a, (uint32_t)(random % (FRAMES - sent) % 32 + 1), sent);
        run_forwarder(&way.forwarder);
        waited |= has_waiting(&way.forwarder);
        received += receive_some(way.out.b, (uint32_t)(random >> 32) % 16, &due);
    }
    struct books first = read_books(way.in.fd, 1), second = read_books(way.out.fd, 1);
    CHECK(waited, "the second link was never full");
    CHECK(judged_by(&way.forwarder, 0) == denied && first.consumed_drops[RWAY_DROP_POLICY] == denied,
          "%lu judged, %lu dropped, %lu denied", (unsigned long)judged_by(&way.forwarder, 0),
          (unsigned long)first.consumed_drops[RWAY_DROP_POLICY], (unsigned long)denied);
    CHECK(judged_by(&way.forwarder, 1) == FRAMES - denied, "%lu allowed", (unsigned long)judged_by(&way.forwarder, 1));
    CHECK(sum_of(second.produced_drops) == 0 && second.published == FRAMES - denied, "dropped");
    close_way(&way);
}

/* Full, and nobody takes anything: how many frames are dropped until ms are over? */
static uint64_t fill_for(struct way *way, uint64_t *sent, uint64_t ms)
{
    uint64_t before = dropped_as_full(way), until = now_ms() + ms;
    do {
        *sent += send_some(way->in.a, RWAY_BURST, *sent);
        run_forwarder(&way->forwarder);
    } while (now_ms() < until && dropped_as_full(way) == before);
    return dropped_as_full(way) - before;
}

static void a_consumer_that_stands_still_is_waited_for_so_long_and_again_once_it_moves(void)
{
    struct way way;
    uint64_t sent = 0;
    open_way(&way, SHORT_MS * 1000);
    for (int round = 0; round < 2; round++) {
        uint64_t started = now_ms();
        CHECK(fill_for(&way, &sent, AWAIT_S * 1000) != 0, "it is waited for without end");
        CHECK(now_ms() - started >= SHORT_MS - 1, "it was waited for %lu ms", (unsigned long)(now_ms() - started));
        for (int burst = 0; burst < 10; burst++) { /* given up: at once */
            sent += send_some(way.in.a, 8, sent);
            while (run_forwarder(&way.forwarder) != 0)
                ;
            CHECK(!has_waiting(&way.forwarder), "frames still wait");
        }
        struct rway_frame frame;
        CHECK(rway_ring_peek(rway_region_consumer(way.out.b, 0), &frame, 1) == 1, "nothing there");
        rway_ring_release(rway_region_consumer(way.out.b, 0));
    }
    struct books first = read_books(way.in.fd, 1), second = read_books(way.out.fd, 1);
    CHECK(offered_in(&second) == delivered_in(&first), "the books");
    close_way(&way);
}

static void a_frame_that_the_link_never_carries_is_not_waited_with(void)
{
    static const struct rway_geometry LONG = {.queues = 1, .slot_count = 64, .slot_payload = 16384, .headroom = 64};
    struct link in = open_link(&LONG, FIRST_LINK), out = open_link(&NARROW, SECOND_LINK);
    struct forwarder forwarder;
    struct rway_frame frame = {.len = 60000};
    open_forwarder(&forwarder, in.b, out.a, NEVER_US);
    for (uint32_t slot = 0; slot < NARROW.slot_count; slot++)
        CHECK(send_some(in.a, 1, 0) == 1 && run_forwarder(&forwarder) == 1, "no room");
    rway_ring_claim(rway_region_producer(in.a, 0), &frame, 1);
    write_frame(frame.data, 0);
    rway_ring_publish(rway_region_producer(in.a, 0), &frame, 1);
    run_forwarder(&forwarder);
    CHECK(!has_waiting(&forwarder), "it waits for more room than there will ever be");
    CHECK(rway_region_producer(out.a, 0)->counts.drops[RWAY_DROP_OVERSIZE] == 1, "not as oversize");
    close_forwarder(&forwarder);
    close_link(&in);
    close_link(&out);
}

static void a_broken_output_is_not_waited_for(void)
{
    struct way way;
    uint64_t sent = 0;
    open_way(&way, NEVER_US);
    CHECK(fill_for(&way, &sent, 1) == 0 && has_waiting(&way.forwarder), "it does not wait");
    rway_region_break(way.out.a, RWAY_BROKEN_TAIL);
    while (run_forwarder(&way.forwarder) != 0)
        ;
    CHECK(!has_waiting(&way.forwarder), "frames still wait");
    CHECK(rway_region_producer(way.out.a, 0)->counts.drops[RWAY_DROP_DOWN] != 0, "not as down");
    close_way(&way);
}

/* ---- with loops ---- */

static struct rway_filter *allow_all(void)
{
    struct rway_filter *filter = rway_filter_new();
    CHECK(filter != NULL, "filter");
    struct rway_filter_table *table = rway_filter_table_new(NULL, 0, RWAY_ALLOW, NULL);
    CHECK(table != NULL, "table");
    rway_filter_replace(filter, table);
    return filter;
}

/* A loop, and the stack that it runs; ports are numbered as they are added. */
struct stack_loop {
    struct rway_loop *loop;
    struct rway_pipeline *pipeline;
    uint32_t ports;
};

static struct stack_loop new_loop(struct rway_filter *filter)
{
    struct stack_loop made = {.loop = rway_loop_new(0), .pipeline = rway_pipeline_new()};
    CHECK(made.loop != NULL && made.pipeline != NULL, "loop");
    CHECK(rway_pipeline_filter(made.pipeline, filter) == 0, "filter");
    CHECK(rway_loop_hook(made.loop, rway_pipeline_hook(made.pipeline)) == 0, "hook");
    return made;
}

static void add_port(struct stack_loop *to, struct rway_region *out)
{
    CHECK(rway_pipeline_out(to->pipeline, to->ports++, rway_region_producer(out, 0)) == 0, "port");
}

static void add_wire(const struct stack_loop *to, struct rway_region *in, uint32_t out_port, uint64_t patience_us)
{
    struct rway_job *job = rway_wire_new(to->pipeline, rway_region_consumer(in, 0), 9, out_port, patience_us);
    CHECK(rway_loop_add(to->loop, job) == 0, "job");
}

static struct rway_loop_counts counts_of(const struct rway_loop *loop)
{
    struct rway_loop_counts counts;
    rway_loop_read(loop, &counts);
    return counts;
}

/* Both directions of a pair in one loop: one waits, the other carries all its frames, and the loop sleeps. */
static void a_direction_that_waits_holds_up_neither_the_other_nor_the_thread(void)
{
    enum { FRAMES = 2000, SLEEPS = 20 };
    struct link left = open_link(&NARROW, FIRST_LINK), right = open_link(&NARROW, SECOND_LINK);
    struct rway_filter *filter = allow_all();
    struct stack_loop both = new_loop(filter);
    struct rway_loop *loop = both.loop;
    add_port(&both, right.a);
    add_port(&both, left.b);
    add_wire(&both, left.b, 0, NEVER_US);
    add_wire(&both, right.a, 1, NEVER_US);
    CHECK(rway_loop_start(loop) == 0, "start");
    uint64_t sent = 0, back = 0, received = 0, until = now_ms() + AWAIT_S * 1000;
    struct rway_producer *first = rway_region_producer(left.a, 0);
    while (counts_of(loop).sleeps < SLEEPS || rway_producer_room(first) >= 4) { /* until it waits, both rings full */
        CHECK(now_ms() < until, "the first ring is not full, or the loop does not sleep");
        sent += send_some(left.a, RWAY_BURST, sent);
        sched_yield();
    }
    while (received < FRAMES) {
        struct rway_frame frames[RWAY_BURST];
        CHECK(now_ms() < until, "%lu of %d came back", (unsigned long)received, FRAMES);
        back += send_some(right.b, 16, back);
        received += rway_ring_peek(rway_region_consumer(left.a, 0), frames, RWAY_BURST);
        rway_ring_release(rway_region_consumer(left.a, 0));
        sched_yield();
    }
    struct rway_loop_counts before = counts_of(loop), after;
    do {
        CHECK(now_ms() < until, "it does not sleep");
        sched_yield();
        after = counts_of(loop);
    } while (after.sleeps < before.sleeps + SLEEPS);
    CHECK(after.iterations - before.iterations <= 2 * (after.sleeps - before.sleeps) + 2 * FRAMES,
          "%lu turns, %lu sleeps", (unsigned long)(after.iterations - before.iterations),
          (unsigned long)(after.sleeps - before.sleeps));
    rway_loop_free(loop);
    CHECK(read_books(right.fd, 1).produced_drops[RWAY_DROP_FULL] == 0, "dropped");
    rway_filter_free(filter);
    close_link(&left);
    close_link(&right);
}

static const struct rway_ring_control *control_of(const struct link *link)
{
    return rway_region_consumer(link->b, 0)->ring.control;
}

/* Has a forwarder dropped what found no room? */
static bool was_given_up(const struct link *links, uint32_t count)
{
    uint64_t dropped = 0;
    for (uint32_t i = 0; i < count; i++)
        dropped += rway_read_once(&control_of(&links[i])->produced.drops[RWAY_DROP_FULL]);
    return dropped != 0;
}

/* Three forwarders in a circle, and a feeder that pushes in more than goes round: one has to give up. */
static void a_circle_of_forwarders_that_is_full_goes_on_and_its_books_balance(void)
{
    enum { CIRCLE = 3, ROUNDS = 5 };
    struct link links[CIRCLE], feed = open_link(&NARROW, CIRCLE + 1);
    struct rway_filter *filters[CIRCLE];
    struct stack_loop loops[CIRCLE];
    for (uint32_t i = 0; i < CIRCLE; i++)
        links[i] = open_link(&NARROW, i + 1);
    for (uint32_t i = 0; i < CIRCLE; i++) {
        filters[i] = allow_all();
        loops[i] = new_loop(filters[i]);
        add_port(&loops[i], links[(i + 1) % CIRCLE].a);
        add_wire(&loops[i], links[i].b, 0, SHORT_MS * 1000 / 10);
    }
    add_wire(&loops[0], feed.b, 0, SHORT_MS * 1000 / 10);
    for (uint32_t i = 0; i < CIRCLE; i++)
        CHECK(rway_loop_start(loops[i].loop) == 0, "start");
    uint64_t sent = 0, until = now_ms() + AWAIT_S * 1000, seen[CIRCLE] = {0};
    while (!was_given_up(links, CIRCLE)) {
        CHECK(now_ms() < until, "nobody gives up, or it is never full");
        sent += send_some(feed.a, RWAY_BURST, sent);
        sched_yield();
    }
    for (uint32_t i = 0; i < CIRCLE; i++)
        seen[i] = rway_read_once(&control_of(&links[i])->tail);
    for (uint32_t i = 0; i < CIRCLE * ROUNDS; i++) { /* each ring moves by all its slots, again and again */
        const struct rway_ring_control *control = control_of(&links[i % CIRCLE]);
        while (rway_read_once(&control->tail) < seen[i % CIRCLE] + NARROW.slot_count) {
            CHECK(now_ms() < until, "ring %u stands still", i % CIRCLE);
            sent += send_some(feed.a, RWAY_BURST, sent);
            sched_yield();
        }
        seen[i % CIRCLE] = rway_read_once(&control->tail);
    }
    for (uint32_t i = 0; i < CIRCLE; i++)
        rway_loop_free(loops[i].loop);
    struct books fed = read_books(feed.fd, 1);
    uint64_t left = fed.in_flight + sum_of(fed.consumed_drops);
    for (uint32_t i = 0; i < CIRCLE; i++) {
        struct books books = read_books(links[i].fd, 1);
        left += books.in_flight + sum_of(books.produced_drops) + sum_of(books.consumed_drops);
        rway_filter_free(filters[i]);
    }
    CHECK(offered_in(&fed) == sent && left == sent, "%lu were sent, %lu are left or dropped", (unsigned long)sent,
          (unsigned long)left);
    for (uint32_t i = 0; i < CIRCLE; i++)
        close_link(&links[i]);
    close_link(&feed);
}

int main(void)
{
    a_slow_consumer_loses_nothing_and_each_frame_is_judged_once();
    a_consumer_that_stands_still_is_waited_for_so_long_and_again_once_it_moves();
    a_frame_that_the_link_never_carries_is_not_waited_with();
    a_broken_output_is_not_waited_for();
    a_direction_that_waits_holds_up_neither_the_other_nor_the_thread();
    a_circle_of_forwarders_that_is_full_goes_on_and_its_books_balance();
    return 0;
}
