/*
 * Feeds the header parser with bytes that nobody thought of. libFuzzer calls LLVMFuzzerTestOneInput; without it, main
 * mutates well-formed frames by a seeded generator: fuzz_parse [rounds] [seed].
 *
 * The first two bytes of an input say how much longer the frame is than what was copied of it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(fact)                                                             \
    do {                                                                       \
        if (!(fact)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #fact); \
            abort();                                                           \
        }                                                                      \
    } while (0)

static void check_offsets(const struct rway_headers *headers, uint32_t copied)
{
    MUST(headers->l3_offset <= copied && headers->l3_offset == 14 + 4 * headers->vlan_count);
    MUST(headers->vlan_count <= 2);
    MUST(headers->payload_offset == headers->l4_offset + headers->l4_len && headers->payload_offset <= copied);
    MUST((headers->ip_version != 0) == (headers->l4_offset != 0));
    MUST(headers->l4_offset == 0 || headers->l4_offset >= headers->l3_offset + 20);
    if (headers->flags & RWAY_HEADERS_LATER_FRAGMENT)
        MUST(headers->l4_len == 0 && !(headers->flags & RWAY_HEADERS_PORTS));
    if (headers->flags & RWAY_HEADERS_PORTS)
        MUST(headers->l4_len >= 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rway_headers first;
    struct rway_headers second;
    uint32_t copied;
    uint32_t frame_len;
    uint8_t *bytes;
    int cause;

    if (size < 2)
        return 0;
    copied = size - 2 < RWAY_HEADERS_MAX ? (uint32_t)(size - 2) : RWAY_HEADERS_MAX;
    frame_len = copied + (uint32_t)(data[0] << 8 | data[1]);
    bytes = malloc(copied + (copied == 0));
    MUST(bytes != NULL);
    memcpy(bytes, data + 2, copied);
    memset(&first, 0x55, sizeof(first));
    memset(&second, 0xaa, sizeof(second));
    cause = rway_parse(bytes, copied, frame_len, &first);
    MUST(cause == rway_parse(bytes, copied, frame_len, &second));
    MUST(memcmp(&first, &second, sizeof(first)) == 0);
    MUST(memcmp(bytes, data + 2, copied) == 0);
    MUST(cause >= RWAY_WELL_FORMED && cause <= RWAY_MALFORMED_TOO_LONG);
    if (cause == RWAY_WELL_FORMED)
        check_offsets(&first, copied);
    free(bytes);
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

/* Ethernet and what follows, so that mutations get past the first checks. */
static size_t seed_frame(uint64_t *state, uint8_t *bytes)
{
    static const uint8_t starts[][24] = {
        {0x08, 0x00, 0x45, 0, 1, 0, 0, 0, 0, 0, 64, IPPROTO_TCP},
        {0x08, 0x00, 0x4a, 0, 1, 0, 0, 0, 0x20, 0, 64, IPPROTO_UDP},
        {0x81, 0x00, 0, 5, 0x08, 0x00, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, IPPROTO_SCTP},
        {0x86, 0xdd, 0x60, 0, 0, 0, 0, 200, IPPROTO_HOPOPTS, 64},
        {0x88, 0xa8, 0, 5, 0x81, 0x00, 0, 6, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 100, IPPROTO_FRAGMENT, 64},
        {0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1},
    };
    static const uint8_t extensions[] = {IPPROTO_DSTOPTS, IPPROTO_ROUTING, IPPROTO_FRAGMENT, IPPROTO_AH,
                                         IPPROTO_TCP,     IPPROTO_UDP,     IPPROTO_ICMPV6};
    size_t size = 2 + next_random(state) % 320;

    memset(bytes, 0, 322);
    bytes[0] = (uint8_t)(next_random(state) % 2);
    bytes[1] = (uint8_t)next_random(state);
    memcpy(bytes + 14, starts[next_random(state) % (sizeof(starts) / sizeof(starts[0]))], sizeof(starts[0]));
    for (uint32_t at = 56; at < 200; at += 8)
        bytes[at] = extensions[next_random(state) % sizeof(extensions)];
    return size;
}

int main(int argc, char **argv)
{
    uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;
    uint64_t state = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1) * 0x9e3779b97f4a7c15ull | 1;
    uint8_t bytes[322];

    for (uint64_t round = 0; round < rounds; round++) {
        size_t size = seed_frame(&state, bytes);

        for (uint32_t change = next_random(&state) % 12; change > 0; change--)
            bytes[next_random(&state) % sizeof(bytes)] = (uint8_t)next_random(&state);
        LLVMFuzzerTestOneInput(bytes, size);
    }
    return 0;
}
