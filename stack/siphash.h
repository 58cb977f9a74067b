/*
 * SipHash: a keyed hash whose values nobody can foresee who does not know the key, so that nobody can aim at a bucket.
 *
 * J.-P. Aumasson, D. J. Bernstein: "SipHash: a fast short-input PRF", INDOCRYPT 2012, section 2. The paper's c and d
 * are compression and finalization rounds; flow tables use 1 and 3, as hash tables that attackers feed commonly do.
 */
#ifndef RWAY_STACK_SIPHASH_H
#define RWAY_STACK_SIPHASH_H

#include <stdint.h>

struct rway_sip {
    uint64_t v0, v1, v2, v3;
};

static inline uint64_t rway_sip_rotate(uint64_t word, unsigned bits)
{
    return word << bits | word >> (64 - bits);
}

static inline void rway_sip_rounds(struct rway_sip *sip, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        sip->v0 += sip->v1;
        sip->v2 += sip->v3;
        sip->v1 = rway_sip_rotate(sip->v1, 13) ^ sip->v0;
        sip->v3 = rway_sip_rotate(sip->v3, 16) ^ sip->v2;
        sip->v0 = rway_sip_rotate(sip->v0, 32);
        sip->v2 += sip->v1;
        sip->v0 += sip->v3;
        sip->v1 = rway_sip_rotate(sip->v1, 17) ^ sip->v2;
        sip->v3 = rway_sip_rotate(sip->v3, 21) ^ sip->v0;
        sip->v2 = rway_sip_rotate(sip->v2, 32);
    }
}

/*
 * SipHash-c-d of 8 * count - 1 bytes, count > 0, given as little-endian words. The last word's top byte must be 0: it
 * is where the paper puts the length.
 */
static inline uint64_t rway_siphash(int c, int d, const uint64_t key[2], const uint64_t *words, uint32_t count)
{
    struct rway_sip sip = {
        .v0 = key[0] ^ 0x736f6d6570736575,
        .v1 = key[1] ^ 0x646f72616e646f6d,
        .v2 = key[0] ^ 0x6c7967656e657261,
        .v3 = key[1] ^ 0x7465646279746573,
    };

    for (uint32_t index = 0; index < count; index++) {
        uint64_t word = words[index];

        if (index + 1 == count)
            word |= (uint64_t)(8 * count - 1) << 56;
        sip.v3 ^= word;
        rway_sip_rounds(&sip, c);
        sip.v0 ^= word;
    }
    sip.v2 ^= 0xff;
    rway_sip_rounds(&sip, d);
    return sip.v0 ^ sip.v1 ^ sip.v2 ^ sip.v3;
}

#endif
