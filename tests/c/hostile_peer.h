/* A peer that has mapped a region and keeps to no rule: what it does to the memory, the bells and the carrier. */
#ifndef HOSTILE_PEER_H
#define HOSTILE_PEER_H

#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"

enum {
    LINK = 7,
    BEHAVED_MS = 20,
    FLIPS = 200 /* changes to the same place in a row */
};

/* Pipes of one direction each; all queues share them. The attacker says on begun that its deeds have begun. */
struct bells {
    int to_victim[2];
    int to_peer[2];
    int begun[2];
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The attacker's own mapping and ends of the bells. */
struct attack {
    int fd;
    uint8_t *memory;
    struct rway_geometry geometry;
    struct rway_shape shape;
    struct bells bells;
    struct rway_region *region; /* to behave by; side b */
    uint64_t random;
};

enum deed {
    FLIP_HEADERS = 0, /* of packets, between what the filter allows and what it denies */
    FLIP_EXTENSIONS = 1,
    FLIP_DESCRIPTORS = 2,
    NEAR_COUNTERS = 3,
    STORM_BELLS = 4,
    PUNCH_HOLES = 5,
    SCRIBBLE_WORDS = 6,
    SCRIBBLE_ALL = 7,
    DEEDS = 8
};

static uint64_t next_random(struct attack *attack)
{
    return attack->random = mix(attack->random);
}

static uint8_t *ring_at(const struct attack *attack, uint32_t side, uint64_t random)
{
    uint64_t queue = random % attack->geometry.queues;
    return attack->memory + attack->shape.rings_offset[side] + queue * attack->shape.queue_size;
}

/* A slot that the victim looks at now or in a moment: few are in use at a time, and only those are worth a change. */
static uint64_t busy_index(const struct attack *attack, const uint8_t *ring, uint64_t random)
{
    uint64_t head = rway_read_once(&((const struct rway_ring_control *)ring)->head);
    return (head + random % 8 - 5) % attack->geometry.slot_count;
}

static struct rway_desc *desc_at(uint8_t *ring, uint64_t index)
{
    return (struct rway_desc *)(ring + sizeof(struct rway_ring_control)) + index;
}

static uint8_t *slot_at(const struct attack *attack, uint8_t *ring, uint64_t index)
{
    return (uint8_t *)desc_at(ring, attack->geometry.slot_count) + index * attack->shape.slot_stride;
}

static uint8_t *busy_slot(const struct attack *attack, uint64_t random)
{
    uint8_t *ring = ring_at(attack, RWAY_SIDE_B, random >> 16);
    return slot_at(attack, ring, busy_index(attack, ring, random));
}

static uint64_t beside(uint64_t value, uint64_t random)
{
    static const int64_t STEPS[] = {0, 1, -1, 2, 63, 64, 65, -64, 128, 4096, INT64_MIN, 1ll << 32};
    return random >> 8 & 15 ? value + (uint64_t)STEPS[random % 12] : random;
}

static void flip_headers(struct attack *attack, uint64_t random)
{
    uint8_t *packet = busy_slot(attack, random) + attack->geometry.headroom;
    for (uint32_t i = 0; i < FLIPS; i++)
        ((volatile uint8_t *)packet)[37] = i % 2 ? 23 : 80;
    if ((random >> 25 & 15) == 0)
        packet[14 + random % 46] = (uint8_t)(random >> 32);
}

static struct rway_extension some_extension(uint64_t random)
{
    static const uint16_t STARTS[] = {34, 0, 13, 14, 50, 65535, 1400, 35};
    return (struct rway_extension){
        .flags = random >> 24 & 7 ? RWAY_EXT_CSUM | (random >> 27 & RWAY_EXT_GSO) : (uint16_t)random,
        .csum_start = STARTS[random >> 30 & 7],
        .csum_offset = random >> 34 & 3 ? 6 : (uint16_t)(random >> 40),
        .gso_type = random >> 36 & 3 ? RWAY_GSO_UDP : (uint16_t)(random >> 41),
        .gso_size = random >> 38 & 3 ? 500 : (uint16_t)(random >> 52 & 15),
        .hdr_len = random >> 40 & 3 ? 42 : (uint16_t)(random >> 43),
    };
}

/* Between what fits every frame and what may not. */
static void flip_extensions(struct attack *attack, uint64_t random)
{
    volatile struct rway_extension *line = (volatile struct rway_extension *)busy_slot(attack, random);
    const struct rway_extension good = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 6};
    const struct rway_extension bad = some_extension(mix(random));
    for (uint32_t i = 0; i < FLIPS; i++)
        *line = i % 2 ? good : bad;
}

static void spoil(struct rway_desc *desc, uint64_t random)
{
    switch (random % 8) {
    case 0:
        desc->kind = (uint8_t)(random >> 32 & 3);
        break;
    case 1:
        desc->flags = (uint8_t)(random >> 32 & 31);
        break;
    case 2:
        desc->slots = (uint16_t)beside(desc->slots, random >> 32);
        break;
    case 3:
    case 4:
        desc->pushed = (uint16_t)beside(desc->pushed, random >> 32);
        break;
    default:
        desc->len = (uint32_t)beside(desc->len, random >> 32);
    }
}

/* Between what it was and what it must not be: who fetches a word twice sees two things. */
static void flip_descriptors(struct attack *attack, uint64_t random)
{
    uint8_t *ring = ring_at(attack, RWAY_SIDE_B, random >> 16);
    struct rway_desc *desc = desc_at(ring, busy_index(attack, ring, random));
    const struct rway_desc before = *desc;
    struct rway_desc bad = before;
    spoil(&bad, mix(random));
    for (uint32_t i = 0; i < FLIPS; i++)
        *(volatile struct rway_desc *)desc = i % 2 ? before : bad;
}

static void write_udp(uint8_t *packet, uint32_t len)
{
    static const uint8_t START[42] = {2, 0, 0, 0,  0,           2, 2, 0,  0, 0, 0, 1,  8, 0, 0x45, 0, 0, 0, 0,
                                      0, 0, 0, 64, IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,    1, 0, 0, 80};
    memcpy(packet, START, sizeof START);
    packet[16] = (uint8_t)((len - 14) >> 8);
    packet[17] = (uint8_t)(len - 14);
    packet[38] = (uint8_t)((len - 34) >> 8);
    packet[39] = (uint8_t)(len - 34);
}

/* A frame that fits its descriptor to the last byte, of a size that no honest producer would publish now and then. */
static struct rway_desc some_frame(const struct attack *attack, uint64_t free, uint64_t random)
{
    const struct rway_geometry *geometry = &attack->geometry;
    uint32_t room = geometry->headroom - RWAY_HEADROOM_MIN;
    const uint32_t pushes[] = {0, 0, 0, room, room / 2, 0, 0, random >> 58 ? 0 : (uint32_t)(random >> 20 & 1023)};
    uint32_t pushed = pushes[random >> 8 & 7];
    uint64_t most = random >> 32 & 63 && free > 8 ? 8 : free;
    uint32_t slots = 1 + (uint32_t)((random >> 38) % most);
    uint32_t len = slots * geometry->slot_payload - (uint32_t)(random % (geometry->slot_payload - 60)) + pushed;
    return (struct rway_desc){.kind = RWAY_DESC_FRAME,
                              .flags = (uint8_t)(random >> 50 & RWAY_FLAGS_KNOWN),
                              .slots = (uint16_t)slots,
                              .len = len,
                              .pushed = (uint16_t)pushed};
}

/* Publish one frame by hand: mostly one that may be, so that the link lives long enough for the others. */
static void craft_frame(struct attack *attack, uint64_t random)
{
    uint8_t *ring = ring_at(attack, RWAY_SIDE_B, random >> 16);
    struct rway_ring_control *control = (struct rway_ring_control *)ring;
    const struct rway_side *victim = (const struct rway_side *)(attack->memory + RWAY_HEADER_SIZE);
    uint64_t slot_count = attack->geometry.slot_count;
    uint64_t tail = rway_read_once(&control->tail), head = rway_read_once(&control->head);
    if (head - tail > slot_count || rway_read_once(&victim->state) == RWAY_SIDE_BROKEN)
        rway_write_once(&control->head, head = tail); /* it may come back: be believable again */
    if (head - tail >= slot_count)
        return;
    struct rway_desc desc = some_frame(attack, slot_count - (head - tail), random = mix(random));
    uint8_t *slot = slot_at(attack, ring, head % slot_count);
    *(struct rway_extension *)slot = some_extension(mix(random));
    if (desc.pushed <= attack->geometry.headroom - RWAY_HEADROOM_MIN)
        write_udp(slot + attack->geometry.headroom - desc.pushed, desc.len);
    for (uint64_t i = 1; i < desc.slots; i++)
        *desc_at(ring, (head + i) % slot_count) = (struct rway_desc){.kind = RWAY_DESC_CONTINUATION};
    uint16_t slots = desc.slots;
    if ((random >> 44 & 127) == 0)
        spoil(&desc, mix(random));
    *desc_at(ring, head % slot_count) = desc;
    rway_store_release(&control->head, head + slots);
}

static void near_counters(struct attack *attack, uint64_t random)
{
    struct rway_ring_control *control = (struct rway_ring_control *)ring_at(attack, random >> 16 & 1, random >> 17);
    uint64_t *const words[] = {&control->head,    &control->tail,  &control->wake_consumer,   &control->wake_producer,
                               &control->stalled, &control->begun, &control->published[0].at, &control->released[1].at};
    uint64_t *word = words[random >> 24 & 7];
    uint64_t before = rway_read_once(word);
    rway_write_once(word, beside(before, random >> 32));
    if (random >> 29 & 7) /* mostly put back at once: who looks twice sees two things */
        rway_write_once(word, before);
}

static void storm_bells(struct attack *attack, uint64_t random)
{
    for (uint32_t i = 0; i < 64; i++) {
        ssize_t ignored = write(attack->bells.to_victim[1], attack->memory, 1 + random % 4000);
        (void)ignored;
    }
    if (random >> 40 & 1)
        fcntl(attack->bells.to_victim[1], F_SETPIPE_SZ, 1 << (12 + (random >> 42 & 7)));
}

static void punch_holes(struct attack *attack, uint64_t random)
{
    uint64_t pages = attack->shape.region_size / 4096;
    uint64_t in_rings = RWAY_RINGS_ALIGN / 4096 + random % (attack->shape.rings_size / 4096);
    uint64_t from = random >> 60 ? in_rings : random % pages;
    int ignored = fallocate(attack->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from * 4096,
                            4096 * (off_t)(1 + (random >> 32 & 3)));
    (void)ignored;
}

static void scribble_words(struct attack *attack, uint64_t random)
{
    static const uint64_t VALUES[] = {0, 1, UINT64_MAX, 1ull << 63, 1ull << 32, 64, 65, 4096};
    uint64_t *word = (uint64_t *)(attack->memory + random % attack->shape.region_size / 8 * 8);
    rway_write_once(word, random >> 60 ? VALUES[random >> 32 & 7] : mix(random));
}

static void scribble_all(struct attack *attack, uint64_t random)
{
    const uint64_t extents[][2] = {{0, 3 * 4096},
                                   {attack->shape.rings_offset[0], attack->shape.rings_size},
                                   {attack->shape.rings_offset[1], attack->shape.rings_size}};
    const uint64_t *extent = extents[random % 3];
    for (uint64_t at = 0; at < extent[1]; at += 8)
        rway_write_once((uint64_t *)(attack->memory + extent[0] + at), mix(random + at));
}

static void *do_deeds(void *argument)
{
    static void (*const DEED[])(struct attack *, uint64_t) = {
        [FLIP_HEADERS] = flip_headers,     [FLIP_EXTENSIONS] = flip_extensions, [FLIP_DESCRIPTORS] = flip_descriptors,
        [NEAR_COUNTERS] = near_counters,   [STORM_BELLS] = storm_bells,         [PUNCH_HOLES] = punch_holes,
        [SCRIBBLE_WORDS] = scribble_words, [SCRIBBLE_ALL] = scribble_all};
    struct attack *attack = argument;
    uint64_t mask = next_random(attack);
    /* Mostly the quiet deeds alone, which a victim does not notice: the loud ones break the link in no time. */
    uint64_t first = mask % DEEDS;
    bool all = (mask >> 8) % 4 == 0;
    if ((mask >> 16) % 2)
        usleep(BEHAVED_MS * 1000);
    for (uint32_t done = 0;; done++) {
        uint64_t random = next_random(attack);
        if (done == 16)
            CHECK(write(attack->bells.begun[1], "", 1) == 1, "begun");
        uint64_t deed = all ? random >> 48 & 7 : first;
        DEED[deed](attack, next_random(attack));
    }
    return NULL;
}

/* A UDP packet over IPv4 to port 80, with the checksum left to the receiver now and then. */
static void write_packet(struct rway_producer *producer, struct rway_frame *frame, uint64_t random)
{
    struct rway_piece pieces[RWAY_PIECES_MAX];
    const struct rway_offload offload = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 6};
    uint32_t count = rway_producer_pieces(producer, frame, pieces);
    memset(pieces[count - 1].data, 0x5a, pieces[count - 1].len);
    write_udp(frame->data, frame->len);
    if (random & 1)
        rway_frame_set_offload(producer, frame, &offload);
}

/* Exchange frames as an honest side b does, on all queues, while the other thread does its deeds. */
static void behave(struct attack *attack, uint64_t random)
{
    for (uint32_t queue = 0; queue < attack->geometry.queues; queue++) {
        struct rway_producer *producer = rway_region_producer(attack->region, queue);
        struct rway_consumer *consumer = rway_region_consumer(attack->region, queue);
        struct rway_frame frames[16];
        for (uint32_t i = 0; i < 16; i++) {
            uint64_t one = mix(random + i);
            uint32_t most = attack->shape.frame_max < 9000 ? attack->shape.frame_max : 9000;
            frames[i] = (struct rway_frame){.len = one % 4 ? 60 + one % 1400 : 60 + one % (most - 60)};
        }
        uint32_t claimed = rway_ring_claim(producer, frames, 1 + random % 16);
        for (uint32_t i = 0; i < claimed; i++)
            write_packet(producer, &frames[i], mix(random ^ i));
        rway_ring_publish(producer, frames, claimed);
        rway_ring_peek(consumer, frames, 16);
        rway_ring_release(consumer);
    }
}

/* Take up the rings again where they stand, if that is possible at all: then the attack goes on with fresh frames. */
static void come_back(struct attack *attack)
{
    rway_region_detach(attack->region);
    attack->region =
        rway_region_over(attack->memory, attack->shape.region_size, &attack->geometry, LINK, RWAY_SIDE_B, 1, NULL);
}

static void be_hostile(struct attack *attack)
{
    pthread_t thread;
    struct attack other = *attack;
    other.random = mix(attack->random);
    attack->region =
        rway_region_over(attack->memory, attack->shape.region_size, &attack->geometry, LINK, RWAY_SIDE_B, 1, NULL);
    if (pthread_create(&thread, NULL, do_deeds, &other) != 0)
        _exit(3);
    bool crafting = next_random(attack) % 3 == 0;
    while (crafting)
        craft_frame(attack, next_random(attack));
    while (attack->region != NULL) {
        behave(attack, next_random(attack));
        if (rway_region_broken(attack->region))
            come_back(attack);
    }
    pthread_join(thread, NULL); /* it never ends */
}

/* Start the attacker; it goes on until it is killed. */
static pid_t fork_hostile_peer(int fd, const struct rway_geometry *geometry, const struct bells *bells, uint64_t random)
{
    pid_t parent = getpid();
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child != 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(3);
    alarm(0);
    struct attack attack = {.fd = fd, .geometry = *geometry, .bells = *bells, .random = random};
    rway_geometry_shape(geometry, &attack.shape, NULL);
    attack.memory = mmap(NULL, attack.shape.region_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (attack.memory == MAP_FAILED)
        _exit(3);
    be_hostile(&attack);
    _exit(3);
}

#endif
