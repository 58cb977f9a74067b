/* Walks the extension headers of an IPv6 packet, in as many of its bytes as there are. */
#ifndef RWAY_STACK_IP6_CHAIN_H
#define RWAY_STACK_IP6_CHAIN_H

#include "stack.h"

/* Offsets from the IPv6 header on. */
struct rway_ip6_chain {
    uint32_t end;      /* of the chain: the transport header, or a later fragment's data */
    uint32_t fragment; /* the fragment header; 0: there is none */
    uint8_t protocol;  /* of what follows the chain */
};

/* RFC 8200 4.2 to 4.6, RFC 4302 2.2: the length of a header of that kind; 0 when it is no extension header. */
static inline uint32_t rway_ip6_extension_len(uint8_t kind, const uint8_t *bytes)
{
    if (kind == IPPROTO_FRAGMENT)
        return 8;
    if (kind == IPPROTO_AH)
        return (bytes[1] + 2) * 4u;
    return kind == IPPROTO_HOPOPTS || kind == IPPROTO_ROUTING || kind == IPPROTO_DSTOPTS ? (bytes[1] + 1) * 8u : 0;
}

/* False when the bytes end before the chain does. packet has its 40 bytes of IPv6 header at least. */
static inline bool rway_ip6_walk(const uint8_t *packet, uint32_t len, struct rway_ip6_chain *chain)
{
    enum { IP6_HEADER = 40, NEXT_HEADER = 6, SHORTEST = 8, FRAGMENT_OFFSET = 2 };
    bool later = false;

    *chain = (struct rway_ip6_chain){.end = IP6_HEADER, .protocol = packet[NEXT_HEADER]};
    while (!later) {
        const uint8_t *header = packet + chain->end;
        bool here = chain->end <= len && len - chain->end >= SHORTEST;
        uint32_t header_len = here ? rway_ip6_extension_len(chain->protocol, header) : 0;

        if (header_len == 0)
            return here;
        if (chain->protocol == IPPROTO_FRAGMENT) {
            chain->fragment = chain->end;
            later = (header[FRAGMENT_OFFSET] << 8 | header[FRAGMENT_OFFSET + 1]) >> 3 != 0;
        }
        chain->protocol = header[0];
        chain->end += header_len;
    }
    return true;
}

#endif
