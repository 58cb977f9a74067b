/*
 * Packet functions of one's own: what they push into a packet, pull out of it and count; where they send it; and that
 * they see packets that cannot be judged only if they say that they judge such.
 */
/* arguments: */
#define _GNU_SOURCE
#include "restart.h"
#include "stack/function.h"

enum { TAG_AT = 12, TAG_LEN = 4, FRAMES = 300, PUSH = 0, PULL = 1, ASIDE = 2 };

static const struct rway_geometry SMALL = {.queues = 1, .slot_count = 64, .slot_payload = 256, .headroom = 64};

/* ---- a function that pushes, pulls or sends aside, as its option says, and counts ---- */

struct changes {
    int64_t what;
    uint64_t *counters;
};

static int freed; /* states */

static void *changes_start(const struct rway_function_start *start)
{
    struct changes *changes = calloc(1, sizeof *changes);
    CHECK(start->port_count == 3 && strcmp(start->ports[2], "aside") == 0, "the ports' names");
    *changes = (struct changes){.what = start->options[0].number, .counters = start->counters};
    return changes;
}

static void changes_stop(void *state)
{
    free(state);
    freed++;
}

static void changes_burst(void *state, struct rway_packet *const *packets, uint32_t count)
{
    static const uint8_t TAG[TAG_LEN] = {0x81, 0, 0, 7};
    struct changes *changes = state;
    rway_counter_add(&changes->counters[0], count);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(packets[i]->malformed == RWAY_WELL_FORMED, "a packet that cannot be judged");
        if (changes->what == PUSH) {
            uint8_t *room = rway_packet_push(packets[i], TAG_AT, TAG_LEN);
            CHECK(room != NULL && rway_packet_push(packets[i], 0, RWAY_PUSH_MAX) == NULL, "the room in front");
            memcpy(room, TAG, TAG_LEN);
        } else if (changes->what == PULL) {
            CHECK(rway_packet_pull(packets[i], TAG_AT, 1 << 16) == -1, "more than there is");
            CHECK(rway_packet_pull(packets[i], TAG_AT, TAG_LEN) == 0, "pull");
        } else {
            rway_packet_send(packets[i], 2);
        }
    }
}

static const struct rway_option OPTIONS[] = {{.name = "what", .least = PUSH, .most = ASIDE}};
static const char *const COUNTERS[] = {"packets"};
static const char *const PORTS[] = {"in", "out", "aside"};
static const struct rway_function CHANGES = {.version = RWAY_FUNCTION_VERSION,
                                             .options = OPTIONS,
                                             .option_count = 1,
                                             .counters = COUNTERS,
                                             .counter_count = 1,
                                             .start = changes_start,
                                             .stop = changes_stop,
                                             .burst = changes_burst};

/* ---- from a link, as port 0, to two others, as ports 1 and 2 ---- */

struct stage {
    int fds[3];
    struct rway_region *outer[3], *inner[3];
    struct rway_pipeline *pipeline;
    struct rway_job *job;
    union rway_option_value options[2];
    uint64_t counters[2];
};

static void open_stage(struct stage *stage, const int64_t *changes, uint32_t count, uint64_t patience_us)
{
    *stage = (struct stage){.pipeline = rway_pipeline_new()};
    for (uint32_t i = 0; i < count; i++) {
        stage->options[i].number = changes[i];
        CHECK(rway_pipeline_add(stage->pipeline, &CHANGES, &stage->options[i], &stage->counters[i], PORTS, 3) == 0,
              "function");
    }
    for (uint32_t i = 0; i < 3; i++) {
        stage->fds[i] = rway_region_create(&SMALL, i + 1, 0, NULL);
        stage->outer[i] = attach(stage->fds[i], &SMALL, i + 1, RWAY_SIDE_A);
        stage->inner[i] = attach(stage->fds[i], &SMALL, i + 1, RWAY_SIDE_B);
        if (i != 0)
            CHECK(rway_pipeline_out(stage->pipeline, i, rway_region_producer(stage->inner[i], 0)) == 0, "port");
    }
    stage->job = rway_wire_new(stage->pipeline, rway_region_consumer(stage->inner[0], 0), 0, 1, patience_us);
    CHECK(stage->job != NULL, "job");
}

static void close_stage(struct stage *stage)
{
    uint32_t functions = stage->pipeline->step_count;
    freed = 0;
    stage->job->free(stage->job);
    rway_pipeline_hook(stage->pipeline)->free(rway_pipeline_hook(stage->pipeline));
    CHECK((uint32_t)freed == functions, "%d states freed", freed);
    for (uint32_t i = 0; i < 3; i++) {
        rway_region_detach(stage->outer[i]);
        rway_region_detach(stage->inner[i]);
        close(stage->fds[i]);
    }
}

/* All bytes of a frame over one to three slots, each its own. */
static void fill_frame(uint8_t *bytes, uint64_t number)
{
    uint32_t len = len_of(number);
    for (uint32_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)(number * 7 + i);
    write_frame(bytes, number);
}

static void send_one(struct stage *stage, uint64_t number)
{
    uint8_t bytes[1024];
    uint32_t len = len_of(number);
    fill_frame(bytes, number);
    CHECK(rway_frames_copy_in(rway_region_producer(stage->outer[0], 0), bytes, &len, 1) == 1, "send");
}

static uint32_t receive_one(struct stage *stage, uint32_t port, uint8_t bytes[4096])
{
    uint32_t len = 0;
    uint32_t got = rway_frames_copy_out(rway_region_consumer(stage->outer[port], 0), bytes, 4096, &len, 1);
    return got == 1 ? len : 0;
}

static void what_is_pushed_and_pulled_leaves_so_whatever_slots_it_takes(void)
{
    const int64_t push[] = {PUSH}, both[] = {PUSH, PULL};
    struct stage stage;
    uint8_t sent[4096], got[4096];
    for (uint32_t count = 1; count <= 2; count++) {
        open_stage(&stage, count == 1 ? push : both, count, 0);
        for (uint64_t number = 0; number < FRAMES; number++) {
            uint32_t tag = count == 1 ? TAG_LEN : 0, len = len_of(number);
            send_one(&stage, number);
            stage.job->run(stage.job);
            fill_frame(sent, number);
            CHECK(receive_one(&stage, 1, got) == len + tag, "frame %lu has another length", (unsigned long)number);
            CHECK(memcmp(got, sent, TAG_AT) == 0 && memcmp(got + TAG_AT + tag, sent + TAG_AT, len - TAG_AT) == 0,
                  "frame %lu has other bytes", (unsigned long)number);
            CHECK(tag == 0 || (got[TAG_AT] == 0x81 && got[TAG_AT + 3] == 7), "no tag");
        }
        CHECK(stage.counters[0] == FRAMES, "not counted");
        close_stage(&stage);
    }
}

static void a_function_sends_where_it_likes(void)
{
    const int64_t aside[] = {ASIDE};
    struct stage stage;
    uint8_t got[4096];
    open_stage(&stage, aside, 1, 0);
    send_one(&stage, 0);
    stage.job->run(stage.job);
    CHECK(receive_one(&stage, 1, got) == 0 && receive_one(&stage, 2, got) == len_of(0), "it came by the wrong port");
    close_stage(&stage);
}

static void frames_that_grow_over_the_end_of_a_slot_wait_for_room_too(void)
{
    enum { COUNT = 60, LEN = 256 };
    const int64_t push[] = {PUSH};
    struct stage stage;
    uint8_t frames[COUNT * LEN] = {0}, got[4096];
    uint32_t lens[COUNT], arrived = 0;
    open_stage(&stage, push, 1, 1000 * 1000);
    for (uint32_t i = 0; i < COUNT; i++) {
        fill_frame(&frames[i * LEN], 0);
        lens[i] = LEN;
    }
    CHECK(rway_frames_copy_in(rway_region_producer(stage.outer[0], 0), frames, lens, COUNT) == COUNT, "send");
    for (int turn = 0; turn < 8; turn++)
        stage.job->run(stage.job);
    CHECK(rway_region_producer(stage.inner[1], 0)->counts.drops[RWAY_DROP_FULL] == 0, "dropped");
    for (int turn = 0; turn < COUNT; turn++) {
        arrived += receive_one(&stage, 1, got) == LEN + TAG_LEN;
        stage.job->run(stage.job);
    }
    CHECK(arrived == COUNT, "%u arrived", arrived);
    close_stage(&stage);
}

static void what_nobody_judges_is_dropped_as_malformed(void)
{
    const int64_t push[] = {PUSH};
    struct stage stage;
    uint8_t bytes[60] = {0}, got[4096];
    uint32_t len = sizeof bytes;
    bytes[12] = 8; /* IPv4, of version 0 */
    open_stage(&stage, push, 1, 0);
    CHECK(rway_frames_copy_in(rway_region_producer(stage.outer[0], 0), bytes, &len, 1) == 1, "send");
    stage.job->run(stage.job);
    CHECK(receive_one(&stage, 1, got) == 0, "it passed");
    CHECK(rway_region_consumer(stage.inner[0], 0)->counts.drops[RWAY_DROP_MALFORMED] == 1, "not as malformed");
    close_stage(&stage);
}

static void offload_data_moves_with_what_is_pushed(void)
{
    struct rway_packet packet = {
        .offload = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 6, .hdr_len = 42}};
    packet.bytes = packet.room + RWAY_PUSH_MAX;
    packet.private_len = packet.len = 60;
    CHECK(rway_packet_push(&packet, TAG_AT, TAG_LEN) != NULL, "push");
    CHECK(packet.offload.csum_start == 38 && packet.offload.hdr_len == 46 && packet.len == 64, "pushed");
    CHECK(rway_packet_pull(&packet, TAG_AT, TAG_LEN) == 0, "pull");
    CHECK(packet.offload.csum_start == 34 && packet.offload.hdr_len == 42 && packet.len == 60, "pulled");
}

int main(void)
{
    what_is_pushed_and_pulled_leaves_so_whatever_slots_it_takes();
    a_function_sends_where_it_likes();
    frames_that_grow_over_the_end_of_a_slot_wait_for_room_too();
    what_nobody_judges_is_dropped_as_malformed();
    offload_data_moves_with_what_is_pushed();
    return 0;
}
