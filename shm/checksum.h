/* The Internet checksum, RFC 1071: sums of 16-bit words that can be put together from parts of even length. */
#ifndef RINGWAY_CHECKSUM_H
#define RINGWAY_CHECKSUM_H

#include <stdint.h>
#include <string.h>

/*
 * Words are added as they lie in memory: the sum's own bytes then lie as the field's do (RFC 1071, 2, B), whatever the
 * machine's order. A frame has 64 KiB: 64 bits never overflow.
 */
static inline uint64_t rway_sum_add(uint64_t sum, const uint8_t *bytes, uint32_t len)
{
    uint32_t at = 0;
    for (; at + 4 <= len; at += 4) {
        uint32_t words;
        memcpy(&words, bytes + at, sizeof words);
        sum += words;
    }
    for (; at < len; at += 2) {
        uint8_t last[2] = {bytes[at], at + 1 < len ? bytes[at + 1] : 0};
        uint16_t word;
        memcpy(&word, last, sizeof word);
        sum += word;
    }
    return sum;
}

static inline uint64_t rway_sum_add_word(uint64_t sum, uint16_t word)
{
    return rway_sum_add(sum, (const uint8_t[]){(uint8_t)(word >> 8), (uint8_t)word}, 2);
}

/* Store the complement of the sum as a checksum at field. */
static inline void rway_sum_store(uint64_t sum, uint8_t *field)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    uint16_t checksum = (uint16_t)~sum;
    memcpy(field, &checksum, sizeof checksum);
}

#endif
