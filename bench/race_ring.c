/*
 * The fast ends of `bench race`: frames built in the slots of a ring and read there, by the public functions of
 * shm/api.h. Each runs until its process is ended or its link breaks, and stays in one call of C.
 *
 * Three loops share two cores (generator, firewall, sink). An end without work looks again for a moment, giving the
 * core to whoever wants it, and then sleeps until its bell rings. The generator also gives its core up after each
 * turn, which is less than the ring to the sink holds: else the sink would come to its core when the firewall has
 * filled that ring and dropped the rest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>

#include "bench.h"

#include "race_traffic.h"

enum {
    HEADERS = 42, /* bytes: Ethernet, IPv4 without options, UDP */
    ETHER = 14,
    IP_LEN_AT = 16,
    IP_SUM_AT = 24,
    UDP_LEN_AT = 38,
    TURN = 2048, /* frames after which the generator lets the sink have the core */
    LOOKS = 64,  /* without work before an end sleeps */
    BOUND_US = 1000 * 1000
};

/* 02:…:01 to 02:…:02, 10.77.0.1:7000 to 10.77.0.2:7001. Lengths and checksum are filled in. */
static const uint8_t HEADERS_OF_ALL[HEADERS] = {
    0x02, 0,    0,    0,    0, 2, 0x02, 0, 0,  0,  0, 1, 0x08, 0x00,                     /* Ethernet: IPv4 */
    0x45, 0,    0,    0,    0, 0, 0x40, 0, 64, 17, 0, 0, 10,   77,   0, 1, 10, 77, 0, 2, /* DF, so no id: RFC 6864 */
    0x1b, 0x58, 0x1b, 0x59, 0, 0, 0,    0, /* UDP without a checksum, as IPv4 allows: RFC 768 */
};

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void make_headers(uint8_t *headers, uint32_t payload)
{
    uint32_t sum = 0;
    memcpy(headers, HEADERS_OF_ALL, HEADERS);
    put16(headers + IP_LEN_AT, HEADERS - ETHER + payload);
    put16(headers + UDP_LEN_AT, 8 + payload);
    for (uint32_t i = ETHER; i < ETHER + 20; i += 2)
        sum += (uint32_t)headers[i] << 8 | headers[i + 1];
    sum = (sum & 0xffff) + (sum >> 16); /* RFC 1071 */
    put16(headers + IP_SUM_AT, ~((sum & 0xffff) + (sum >> 16)));
}

int bench_race_ring_send(void *native, uint32_t len, struct race_books *shared)
{
    struct rway_producer *producer = native;
    struct rway_waiter *waiter = rway_waiter_new();
    uint8_t headers[HEADERS];
    uint64_t number = 0;
    uint32_t looks = 0;
    if (waiter == NULL || len < RACE_PAYLOAD_MIN || len > RACE_PAYLOAD_MAX) {
        rway_waiter_free(waiter);
        return -EINVAL;
    }
    make_headers(headers, len);
    while (rway_producer_broken(producer) == RWAY_WHOLE) {
        struct rway_frame frames[RACE_BURST];
        for (uint32_t i = 0; i < RACE_BURST; i++)
            frames[i] = (struct rway_frame){.len = HEADERS + len};
        uint32_t claimed = rway_ring_claim(producer, frames, RACE_BURST);
        for (uint32_t i = 0; i < claimed; i++) {
            memcpy(frames[i].data, headers, HEADERS);
            race_payload_fill(frames[i].data + HEADERS, len, number + i);
        }
        rway_ring_publish(producer, frames, claimed);
        number += claimed;
        race_write(&shared->sent, number);
        if (claimed != 0) {
            looks = 0;
            if (number % TURN < claimed)
                sched_yield();
        } else if (++looks < LOOKS) {
            sched_yield();
        } else {
            rway_waiter_reset(waiter);
            rway_waiter_add_producer(waiter, producer, 1);
            rway_waiter_wait(waiter, BOUND_US);
            looks = 0;
        }
    }
    rway_waiter_free(waiter);
    return -EPIPE;
}

/* What was sent has these headers to the byte, and one slot. */
static void take(struct race_sink *sink, const struct rway_frame *frame, const uint8_t *headers, uint32_t len)
{
    if (frame->len != HEADERS + len || frame->slots != 1 || memcmp(frame->data, headers, HEADERS) != 0)
        sink->books.damaged++;
    else
        race_take(sink, frame->data + HEADERS, len);
}

int bench_race_ring_receive(void *native, void *region, uint32_t len, struct race_books *shared)
{
    struct rway_consumer *consumer = native;
    static struct race_sink sink;
    struct rway_waiter *waiter = rway_waiter_new();
    uint8_t headers[HEADERS];
    uint32_t looks = 0;
    if (waiter == NULL || len < RACE_PAYLOAD_MIN || len > RACE_PAYLOAD_MAX) {
        rway_waiter_free(waiter);
        return -EINVAL;
    }
    make_headers(headers, len);
    while (rway_region_broken(region) == RWAY_WHOLE) {
        struct rway_frame frames[RACE_BURST];
        uint32_t taken = rway_ring_peek(consumer, frames, RACE_BURST);
        for (uint32_t i = 0; i < taken; i++)
            take(&sink, &frames[i], headers, len);
        rway_ring_release(consumer);
        if (taken != 0) {
            race_publish(&sink, shared);
            looks = 0;
        } else if (++looks < LOOKS) {
            sched_yield();
        } else {
            rway_waiter_reset(waiter);
            rway_waiter_add_consumer(waiter, consumer);
            rway_waiter_wait(waiter, BOUND_US);
            looks = 0;
        }
    }
    rway_waiter_free(waiter);
    return -EPIPE;
}
