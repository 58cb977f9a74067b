/*
 * The flow hash: one number for both directions of a flow, by which its frames find their queue.
 *
 * It is a public function without a secret, because the two ends of a chain must come to the same number: so somebody
 * who chooses his addresses and ports can have all his flows in one queue. Each endpoint (address and port) is mixed by
 * itself and the two are added, which forgets who is the source; mixing before adding keeps a swap of ports alone
 * apart, which the usual symmetric receive-side scaling (a Toeplitz key that repeats every 16 bits: Woo and Park,
 * "Scalable TCP Session Monitoring with Symmetric Receive-side Scaling", 2012) cannot tell from its mirror image.
 * Mixing is multiplication and folding, as in the finaliser of MurmurHash3 (Appleby).
 *
 * All fragments of a datagram hash alike, so the first one, too, leaves out its ports; and its protocol, because a
 * later IPv6 fragment may not say it.
 */
#include <string.h>

#include "stack.h"

/* Odd numbers without pattern: the 64 bits behind the point of the golden ratio and of the square roots of 2 and 3. */
static const uint64_t GOLDEN = 0x9e3779b97f4a7c15u, ROOT_2 = 0x6a09e667f3bcc909u, ROOT_3 = 0xbb67ae8584caa73bu;

/* A product carries bits upwards only, and an address's last byte is a word's highest: fold down, before and after. */
static uint64_t mix(uint64_t word, uint64_t by)
{
    word = (word ^ word >> 32) * by;
    return word ^ word >> 29;
}

/* An IPv4 address leaves the upper half of the first word and all of the second 0. */
static uint64_t endpoint(const uint8_t address[16], uint16_t port, bool ip6)
{
    uint64_t words[2];
    memcpy(words, address, sizeof words);
    uint64_t mixed = mix(words[0] + port * ROOT_3, GOLDEN);
    return ip6 ? mix(mixed + words[1], ROOT_2) : mixed;
}

uint32_t rway_flow_hash(const struct rway_headers *headers)
{
    bool fragment = headers->flags & (RWAY_HEADERS_FIRST_FRAGMENT | RWAY_HEADERS_LATER_FRAGMENT);
    bool ip6 = headers->ip_version == 6;
    uint64_t kind = (uint64_t)headers->ether << 8 | (fragment ? 0 : headers->protocol);
    uint16_t source_port = fragment ? 0 : headers->source_port;
    uint16_t destination_port = fragment ? 0 : headers->destination_port;
    uint64_t both = endpoint(headers->source, source_port, ip6) + endpoint(headers->destination, destination_port, ip6);
    uint64_t hash = mix(mix(both + kind, ROOT_2), ROOT_3);
    return (uint32_t)(hash >> 16);
}
