/*
 * A bridge of three ports: it learns and forgets, floods what it does not know and never back, holds floods and tables
 * to their bounds whoever sends what, and the filter applies by port.
 */
/* arguments: */
#define _GNU_SOURCE
#include "restart.h"
#include "stack/bridge.h"

enum { PORTS = 3, ADDRESSES = 64, AGEING_S = 300, FLOOD_RATE = 1000, LEN = 60 };
static const uint64_t SECOND_NS = 1000000000;
static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 256, .slot_payload = 256, .headroom = 64};
static const uint8_t BROADCAST[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

struct stage {
    int fds[PORTS];
    struct rway_region *hosts[PORTS], *ends[PORTS];
    struct rway_filter *filter;
    struct rway_pipeline *pipeline;
    struct rway_bridge *bridge;
    struct rway_job *job;
    uint64_t now_ns;
};

static void set_time(struct stage *stage, uint64_t now_ns)
{
    stage->now_ns = now_ns;
    for (uint32_t i = 0; i <= stage->bridge->bucket_count; i++) /* all of the table is looked through */
        rway_bridge_turn(stage->bridge, now_ns);
}

static void open_stage(struct stage *stage, const struct rway_rule *rules, uint32_t count)
{
    struct rway_error error;
    *stage = (struct stage){.filter = rway_filter_new(), .pipeline = rway_pipeline_new()};
    struct rway_filter_table *table = rway_filter_table_new(rules, count, RWAY_ALLOW, &error);
    CHECK(table != NULL && rway_filter_replace(stage->filter, table) == 0, "filter");
    CHECK(rway_pipeline_filter(stage->pipeline, stage->filter) == 0, "function");
    for (uint32_t port = 0; port < PORTS; port++) {
        stage->fds[port] = rway_region_create(&GEOMETRY, port + 1, 0, NULL);
        stage->hosts[port] = attach(stage->fds[port], &GEOMETRY, port + 1, RWAY_SIDE_A);
        stage->ends[port] = attach(stage->fds[port], &GEOMETRY, port + 1, RWAY_SIDE_B);
        CHECK(rway_pipeline_out(stage->pipeline, port, rway_region_producer(stage->ends[port], 0)) == 0, "port");
    }
    stage->bridge = rway_bridge_new(ADDRESSES, PORTS, AGEING_S, FLOOD_RATE);
    CHECK(stage->bridge != NULL, "bridge");
    stage->job = rway_bridge_job_new(stage->pipeline, stage->bridge);
    for (uint32_t port = 0; port < PORTS; port++)
        CHECK(rway_bridge_job_add(stage->job, rway_region_consumer(stage->ends[port], 0), port) == 0, "inlet");
    rway_pipeline_hook(stage->pipeline)->turn(rway_pipeline_hook(stage->pipeline));
    set_time(stage, 1000 * SECOND_NS);
}

static struct rway_bridge_counts counts_of(const struct stage *stage)
{
    struct rway_bridge_counts counts;
    rway_bridge_read(stage->bridge, &counts);
    return counts;
}

/* What the VM has taken for good, and what flooding added, is what was offered. */
static void close_stage(struct stage *stage)
{
    uint64_t taken = 0, offered = 0;
    while (stage->job->run(stage->job) != 0)
        ;
    for (uint32_t port = 0; port < PORTS; port++) {
        const struct rway_consumer *in = rway_region_consumer(stage->ends[port], 0);
        const struct rway_producer *out = rway_region_producer(stage->ends[port], 0);
        taken += in->counts.frames - in->dropped;
        offered += out->counts.frames + out->dropped;
    }
    CHECK(taken + counts_of(stage).copies == offered, "%lu taken, %lu copies, %lu offered", (unsigned long)taken,
          (unsigned long)counts_of(stage).copies, (unsigned long)offered);
    stage->job->free(stage->job);
    rway_pipeline_hook(stage->pipeline)->free(rway_pipeline_hook(stage->pipeline));
    rway_bridge_free(stage->bridge);
    rway_filter_free(stage->filter);
    for (uint32_t port = 0; port < PORTS; port++) {
        rway_region_detach(stage->hosts[port]);
        rway_region_detach(stage->ends[port]);
        close(stage->fds[port]);
    }
}

static const uint8_t *address(uint64_t number)
{
    static uint8_t made[4][6];
    static uint32_t next;
    uint8_t *to = made[next++ % 4];
    const uint8_t bytes[6] = {
        2, 0, (uint8_t)(number >> 24), (uint8_t)(number >> 16), (uint8_t)(number >> 8), (uint8_t)number};
    return memcpy(to, bytes, 6);
}

/* Of an Ethernet type that nobody parses; vlan 0: no tag. */
static void send_tagged(struct stage *stage, uint32_t port, const uint8_t *to, const uint8_t *from, uint16_t vlan)
{
    struct rway_producer *producer = rway_region_producer(stage->hosts[port], 0);
    struct rway_frame frame = {.len = LEN};
    CHECK(rway_ring_claim(producer, &frame, 1) == 1, "the host's ring is full");
    memset(frame.data, 0, LEN);
    memcpy(frame.data, to, 6);
    memcpy(frame.data + 6, from, 6);
    uint8_t *type = frame.data + 12;
    if (vlan != 0) {
        *type++ = 0x81;
        *type++ = 0;
        *type++ = (uint8_t)(vlan >> 8);
        *type++ = (uint8_t)vlan;
    }
    type[0] = 0x88;
    type[1] = 0xb5;
    rway_ring_publish(producer, &frame, 1);
}

static void send_from(struct stage *stage, uint32_t port, const uint8_t *to, const uint8_t *from)
{
    send_tagged(stage, port, to, from, 0);
}

static uint32_t receive_at(struct stage *stage, uint32_t port)
{
    struct rway_frame frames[RWAY_BURST];
    struct rway_consumer *consumer = rway_region_consumer(stage->hosts[port], 0);
    uint32_t taken = 0, some;
    while ((some = rway_ring_peek(consumer, frames, RWAY_BURST)) != 0) {
        taken += some;
        rway_ring_release(consumer);
    }
    return taken;
}

/* Let it run, and see which ports got how many frames: a digit each, port 0 first, such as 011. */
static uint32_t arrivals(struct stage *stage)
{
    uint32_t seen = 0;
    while (stage->job->run(stage->job) != 0)
        ;
    for (uint32_t port = 0; port < PORTS; port++)
        seen = seen * 10 + receive_at(stage, port);
    return seen;
}

static void it_learns_where_addresses_are_and_never_sends_back(void)
{
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 0, address(2), address(1));
    CHECK(arrivals(&stage) == 11, "the unknown is not flooded to all others");
    send_from(&stage, 1, address(1), address(2));
    CHECK(arrivals(&stage) == 100, "the known is not sent to its port alone");
    send_from(&stage, 0, address(2), address(1));
    CHECK(arrivals(&stage) == 10, "nor back");
    send_from(&stage, 1, address(2), address(3)); /* both behind the same port */
    CHECK(arrivals(&stage) == 0 && counts_of(&stage).same_port == 1, "it leaves by the port it came in by");
    send_from(&stage, 2, BROADCAST, address(4));
    CHECK(arrivals(&stage) == 110, "broadcast");
    CHECK(counts_of(&stage).addresses == 4 && counts_of(&stage).learnt == 4, "addresses");
    close_stage(&stage);
}

static void it_forgets_what_it_has_not_seen_for_so_long(void)
{
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 0, address(2), address(1));
    send_from(&stage, 1, address(1), address(2));
    arrivals(&stage);
    set_time(&stage, stage.now_ns + AGEING_S * SECOND_NS);
    send_from(&stage, 1, address(1), address(2)); /* seen again */
    CHECK(arrivals(&stage) == 100, "it is forgotten too early");
    set_time(&stage, stage.now_ns + SECOND_NS);
    CHECK(counts_of(&stage).aged == 1 && counts_of(&stage).addresses == 1, "%lu aged",
          (unsigned long)counts_of(&stage).aged);
    send_from(&stage, 1, address(1), address(2));
    CHECK(arrivals(&stage) == 101, "it is not forgotten");
    rway_bridge_forget(stage.bridge, 1);
    CHECK(counts_of(&stage).addresses == 0, "a port that is gone");
    close_stage(&stage);
}

static void an_address_that_moves_is_found_at_its_new_port(void)
{
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 0, BROADCAST, address(1));
    send_from(&stage, 2, BROADCAST, address(1));
    arrivals(&stage);
    send_from(&stage, 1, address(1), address(2));
    CHECK(arrivals(&stage) == 1 && counts_of(&stage).moved == 1 && counts_of(&stage).addresses == 2, "moved");
    close_stage(&stage);
}

static void random_senders_fill_their_ports_share_and_no_other(void)
{
    enum { FRAMES = 20000, STEP = 32 };
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 0, address(2), address(1));
    send_from(&stage, 1, address(1), address(2));
    arrivals(&stage);
    for (uint64_t i = 0; i < FRAMES; i += STEP) {
        for (uint64_t k = i; k < i + STEP; k++)
            send_from(&stage, 2, address(1), address(mix(k)));
        uint32_t seen = arrivals(&stage);
        CHECK(seen == STEP * 100, "it floods, or loses, what is known: %u", seen);
    }
    CHECK(counts_of(&stage).addresses <= ADDRESSES + 2 && counts_of(&stage).not_learnt > FRAMES / 2, "no bound");
    send_from(&stage, 1, address(1), address(2));
    CHECK(arrivals(&stage) == 100, "the others' addresses are lost");
    send_from(&stage, 1, BROADCAST, address(3));
    arrivals(&stage);
    send_from(&stage, 0, address(3), address(1));
    CHECK(arrivals(&stage) == 10, "the others' ports learn no more");
    close_stage(&stage);
}

static void a_flood_is_bounded_and_what_is_known_goes_on(void)
{
    enum { FRAMES = 10000, STEP = 32 };
    struct stage stage;
    uint64_t flooded = 0;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 0, BROADCAST, address(1));
    send_from(&stage, 1, address(1), address(2));
    arrivals(&stage);
    for (uint64_t i = 0; i < FRAMES; i += STEP) {
        for (uint64_t k = 0; k < STEP; k++)
            send_from(&stage, 2, k % 2 ? BROADCAST : address(99), address(3));
        send_from(&stage, 1, address(1), address(2));
        uint32_t seen = arrivals(&stage);
        CHECK(seen % 10 == 0, "%u", seen);
        flooded += seen / 10 % 10;
        if (counts_of(&stage).flood_limited != 0)
            break;
    }
    CHECK(counts_of(&stage).flood_limited != 0, "it is not bounded");
    uint64_t before = counts_of(&stage).flooded;
    set_time(&stage, stage.now_ns + SECOND_NS / 20); /* 50 frames more */
    for (uint64_t k = 0; k < 2 * STEP; k++)
        send_from(&stage, 2, BROADCAST, address(3));
    arrivals(&stage);
    CHECK(counts_of(&stage).flooded - before == FLOOD_RATE / 20, "%lu more",
          (unsigned long)(counts_of(&stage).flooded - before));
    send_from(&stage, 0, BROADCAST, address(1));
    CHECK(arrivals(&stage) == 11, "another port's allowance is used up");
    close_stage(&stage);
}

static void groups_are_flooded_and_no_source_and_what_is_for_the_next_bridge_stays(void)
{
    static const uint8_t GROUP[6] = {0x01, 0x00, 0x5e, 0, 0, 5}, RESERVED[6] = {0x01, 0x80, 0xc2, 0, 0, 0x0e};
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 0, GROUP, address(1));
    CHECK(arrivals(&stage) == 11, "multicast");
    send_from(&stage, 0, address(2), GROUP);
    CHECK(arrivals(&stage) == 0 && counts_of(&stage).bad_source == 1, "from a group");
    send_from(&stage, 1, GROUP, address(2));
    CHECK(arrivals(&stage) == 101, "the group was learnt");
    send_from(&stage, 0, RESERVED, address(1));
    CHECK(arrivals(&stage) == 0 && counts_of(&stage).reserved == 1, "reserved");
    close_stage(&stage);
}

static void an_address_is_known_in_its_vlan_alone(void)
{
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_tagged(&stage, 0, BROADCAST, address(1), 10);
    send_tagged(&stage, 1, BROADCAST, address(1), 20);
    arrivals(&stage);
    send_tagged(&stage, 2, address(1), address(2), 10);
    CHECK(arrivals(&stage) == 100, "VLAN 10");
    send_tagged(&stage, 2, address(1), address(2), 20);
    CHECK(arrivals(&stage) == 10, "VLAN 20");
    send_tagged(&stage, 2, address(1), address(2), 30);
    CHECK(arrivals(&stage) == 110, "VLAN 30");
    close_stage(&stage);
}

static void the_filter_applies_by_port_and_to_what_is_flooded(void)
{
    const struct rway_rule denied = {.name = "denied", .action = RWAY_DENY, .match = RWAY_MATCH_IN_PORT, .in_port = 2};
    struct stage stage;
    open_stage(&stage, &denied, 1);
    send_from(&stage, 2, BROADCAST, address(3));
    CHECK(arrivals(&stage) == 0, "denied");
    send_from(&stage, 0, address(3), address(1));
    CHECK(arrivals(&stage) == 1, "to it, nothing is denied");
    CHECK(counts_of(&stage).flooded == 0, "what is denied takes from the allowance");
    close_stage(&stage);
}

static void a_port_that_takes_nothing_stops_no_other(void)
{
    enum { FRAMES = 1000 };
    struct stage stage;
    open_stage(&stage, NULL, 0);
    send_from(&stage, 1, BROADCAST, address(2));
    send_from(&stage, 2, BROADCAST, address(3));
    arrivals(&stage);
    for (uint32_t i = 0; i < FRAMES; i++) {
        send_from(&stage, 0, address(2 + i % 2), address(1));
        stage.job->run(stage.job);
        CHECK(receive_at(&stage, 2) == i % 2, "frame %u", i); /* port 1 takes none */
    }
    CHECK(rway_region_producer(stage.ends[1], 0)->counts.drops[RWAY_DROP_FULL] == FRAMES / 2 - GEOMETRY.slot_count,
          "not dropped as full");
    close_stage(&stage);
}

int main(void)
{
    it_learns_where_addresses_are_and_never_sends_back();
    it_forgets_what_it_has_not_seen_for_so_long();
    an_address_that_moves_is_found_at_its_new_port();
    random_senders_fill_their_ports_share_and_no_other();
    a_flood_is_bounded_and_what_is_known_goes_on();
    groups_are_flooded_and_no_source_and_what_is_for_the_next_bridge_stays();
    an_address_is_known_in_its_vlan_alone();
    the_filter_applies_by_port_and_to_what_is_flooded();
    a_port_that_takes_nothing_stops_no_other();
    return 0;
}
