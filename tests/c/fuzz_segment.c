/*
 * Feeds the segmenter with frames and offload data that nobody thought of. libFuzzer calls LLVMFuzzerTestOneInput;
 * without it, main mutates well-formed frames by a seeded generator: fuzz_segment [rounds] [seed].
 *
 * The first 12 bytes of an input are a struct rway_offload, the rest is the frame.
 */

#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ringway.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(fact)                                                             \
    do {                                                                       \
        if (!(fact)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #fact); \
            abort();                                                           \
        }                                                                      \
    } while (0)

/* Into memory of exactly the length that was announced, so that a byte too many is found. */
static void cut_all(struct rway_segmenter *segmenter, const struct rway_offload *offload, uint32_t frame_len)
{
    uint32_t most = offload->gso_type == RWAY_GSO_UDP ? RWAY_SEGMENTS_UDP_MAX : RWAY_SEGMENTS_TCP_MAX;
    uint32_t count = 0, len;

    while ((len = rway_segmenter_next_len(segmenter)) != 0) {
        uint8_t *to = malloc(len);

        MUST(to != NULL && ++count <= most);
        MUST(len <= frame_len && len <= (uint32_t)RWAY_SEGMENT_HEADERS_MAX + offload->gso_size);
        MUST(rway_segmenter_next(segmenter, to) == len);
        free(to);
    }
    MUST(count > 0 && segmenter->at == segmenter->end && segmenter->end <= frame_len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rway_segmenter segmenter;
    struct rway_offload offload;
    uint32_t len;
    uint8_t *frame;

    if (size < sizeof(offload) + RWAY_FRAME_MIN)
        return 0;
    memcpy(&offload, data, sizeof(offload));
    len = (uint32_t)(size - sizeof(offload));
    frame = malloc(len);
    MUST(frame != NULL);
    memcpy(frame, data + sizeof(offload), len);
    if (rway_segmenter_begin(&segmenter, frame, len, &offload) == 0)
        cut_all(&segmenter, &offload, len);
    else
        MUST(rway_segmenter_next_len(&segmenter) == 0);
    MUST(memcmp(frame, data + sizeof(offload), len) == 0);
    rway_checksum_finish(frame, len, &offload);
    free(frame);
    return 0;
}

/* xorshift64: the same rounds on every machine. */
static uint32_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 16);
}

/* One of the four kinds that can be cut, so that mutations get past the first checks. */
static size_t seed_input(uint64_t *state, uint8_t *bytes)
{
    bool ip6 = next_random(state) % 2, tcp = next_random(state) % 2, tag = next_random(state) % 2;
    uint16_t l3 = tag ? 18 : 14, l4 = l3 + (ip6 ? 56 : 20), len = l4 + 20 + next_random(state) % 300;
    uint8_t protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP, *frame = bytes + sizeof(struct rway_offload);
    uint8_t *ip = frame + l3;
    struct rway_offload offload = {.flags = RWAY_EXT_CSUM | RWAY_EXT_GSO,
                                   .gso_type = !tcp  ? RWAY_GSO_UDP
                                               : ip6 ? RWAY_GSO_TCP6
                                                     : RWAY_GSO_TCP4,
                                   .gso_size = (uint16_t)(3 + next_random(state) % 200),
                                   .csum_start = l4,
                                   .csum_offset = tcp ? 16 : 6};

    memcpy(bytes, &offload, sizeof(offload));
    if (tag)
        memcpy(frame + 12, (const uint8_t[]){0x81, 0, 0, 5}, 4);
    memcpy(ip - 2, ip6 ? (const uint8_t[]){0x86, 0xdd} : (const uint8_t[]){0x08, 0x00}, 2);
    if (ip6) { /* with destination options of 16 bytes */
        memcpy(ip, (const uint8_t[]){0x60, 0, 0, 0, 0, 0, IPPROTO_DSTOPTS, 64}, 8);
        memcpy(ip + 40, (const uint8_t[]){protocol, 1}, 2);
        memcpy(ip + 4, (const uint8_t[]){(uint8_t)((len - l3 - 40) >> 8), (uint8_t)(len - l3 - 40)}, 2);
    } else {
        memcpy(ip, (const uint8_t[]){0x45, 0, (uint8_t)((len - l3) >> 8), (uint8_t)(len - l3)}, 4);
        memcpy(ip + 8, (const uint8_t[]){64, protocol}, 2);
    }
    frame[l4 + 12] = tcp ? 0x50 : 0;
    return sizeof(offload) + len;
}

int main(int argc, char **argv)
{
    uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;
    uint64_t state = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1) * 0x9e3779b97f4a7c15ull | 1;

    for (uint64_t round = 0; round < rounds; round++) {
        uint8_t bytes[512] = {0};
        size_t size = seed_input(&state, bytes);

        for (uint32_t change = next_random(&state) % 4; change > 0; change--)
            bytes[next_random(&state) % 96] = (uint8_t)next_random(&state);
        LLVMFuzzerTestOneInput(bytes, size);
    }
    return 0;
}

/* arguments: 40000 */
