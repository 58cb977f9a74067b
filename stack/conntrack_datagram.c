/*
 * Datagrams of which the first fragment passed, so that the others, which have no ports, follow it.
 *
 *      fragment of a datagram          what becomes of it
 *      first, allowed                  it passes, and the datagram is known for REMEMBERED_S seconds
 *      first, denied                   it is dropped, and a datagram known by the same identification is forgotten
 *      later, of a known datagram      it passes, unless it begins before the end of the first one, whose headers and
 *                                      data were judged and are not to be written over (RFC 1858, RFC 5722)
 *      any other later one             the rules alone decide: nothing is held back until its first one comes
 *
 * A datagram is one way: addresses, identification, IP version, IPv4's protocol (RFC 791, RFC 8200 4.5), VLANs, and the
 * ports by which it comes in and goes out. Few frames are fragments, so a line or two more for each do not matter, and
 * a bucket is looked through from its start.
 *
 * Room is bounded: a new datagram takes the place of the oldest of its bucket. Which bucket depends on the table's
 * secret. Of a full bucket the way in that has most of it loses one, so that a flood displaces datagrams of its own.
 */
#include <string.h>

#include "conntrack.h"
#include "ip6_chain.h"
#include "spinlock.h"

enum {
    REMEMBERED_S = 30, /* longer than fragments take; receivers give up after 30 or 60 (RFC 1122 3.3.2, RFC 8200 4.5) */
    PLACES = 7
};

struct datagram {
    struct rway_conntrack_key key; /* all 0: a free place */
    uint32_t deadline;             /* the last second in which it is known */
    uint32_t age;                  /* counts up in its bucket: the lowest is the oldest */
    uint32_t first_end;            /* bytes of the datagram that the first fragment had */
    uint32_t pad;
};

/* Guarded by its lock. */
struct rway_datagram_bucket {
    uint32_t lock;
    uint32_t made;
    uint8_t pad[RWAY_LINE - 2 * sizeof(uint32_t)];
    struct datagram places[PLACES];
};

_Static_assert(sizeof(struct datagram) == RWAY_LINE, "a datagram is one line");
_Static_assert(RWAY_DATAGRAM_BUCKETS * sizeof(struct rway_datagram_bucket) == RWAY_DATAGRAMS_SIZE, "as it is told");

/* What a fragment says of itself. */
struct fragment {
    struct rway_conntrack_key datagram;
    uint32_t begins; /* bytes of the datagram */
    uint32_t ends;
};

static uint16_t read16(const uint8_t *bytes)
{
    return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

static uint32_t read_ip4(const uint8_t *packet, struct fragment *fragment)
{
    fragment->begins = (read16(packet + 6) & 0x1fffu) * 8;
    fragment->ends = fragment->begins + read16(packet + 2) - (packet[0] & 15) * 4u;
    return read16(packet + 4);
}

/* rway_parse has seen that the chain of headers is whole as far as the fragment header, and that there is one only. */
static bool read_ip6(const uint8_t *packet, uint32_t len, struct fragment *fragment, uint32_t *id)
{
    struct rway_ip6_chain chain;
    const uint8_t *header;

    if (!rway_ip6_walk(packet, len, &chain) || chain.fragment == 0)
        return false;
    header = packet + chain.fragment;
    fragment->begins = read16(header + 2) & 0xfff8u;
    fragment->ends = fragment->begins + 40 + read16(packet + 4) - (chain.fragment + 8);
    *id = (uint32_t)read16(header + 4) << 16 | read16(header + 6);
    return true;
}

static bool read_fragment(const struct rway_judged *frame, uint32_t in_port, uint32_t out_port,
                          struct fragment *fragment)
{
    const struct rway_headers *headers = frame->headers;
    const uint8_t *packet = frame->bytes + headers->l3_offset;
    uint64_t *words = fragment->datagram.words;
    uint64_t protocol = headers->ip_version == 4 ? headers->protocol : 0;
    uint32_t id;

    if (headers->ip_version == 4)
        id = read_ip4(packet, fragment);
    else if (!read_ip6(packet, frame->copied - headers->l3_offset, fragment, &id))
        return false;
    memcpy(words, headers->source, sizeof(headers->source));
    memcpy(words + 2, headers->destination, sizeof(headers->destination));
    words[4] = id | (uint64_t)(uint16_t)in_port << 32 | (uint64_t)(uint16_t)out_port << 48;
    words[5] = rway_conntrack_vlan_ids(frame) | protocol << 32 | (uint64_t)headers->ip_version << 40;
    return true;
}

/* ---- places ---- */

static struct rway_datagram_bucket *lock_bucket(const struct rway_conntrack *conntrack,
                                                const struct rway_conntrack_key *key)
{
    uint64_t value = (uint32_t)rway_conntrack_keyed_hash(conntrack, key);
    struct rway_datagram_bucket *bucket = &conntrack->datagrams[value * RWAY_DATAGRAM_BUCKETS >> 32];

    rway_lock(&bucket->lock);
    return bucket;
}

static struct datagram *find(struct rway_datagram_bucket *bucket, const struct rway_conntrack_key *key)
{
    for (uint32_t place = 0; place < PLACES; place++)
        if (rway_conntrack_key_equal(&bucket->places[place].key, key))
            return &bucket->places[place];
    return NULL;
}

static uint16_t way_in(const struct rway_conntrack_key *key)
{
    return (uint16_t)(key->words[4] >> 32);
}

static uint32_t count_way_in(const struct rway_datagram_bucket *bucket, uint16_t in)
{
    uint32_t count = 0;

    for (uint32_t place = 0; place < PLACES; place++)
        count += way_in(&bucket->places[place].key) == in;
    return count;
}

/* Of the way in that has most places of a full bucket, the new datagram counted too, the oldest. */
static struct datagram *displaced(struct rway_datagram_bucket *bucket, uint16_t in)
{
    uint16_t loser = in;
    uint32_t most = count_way_in(bucket, in) + 1;
    struct datagram *oldest = NULL;

    for (uint32_t place = 0; place < PLACES; place++) {
        uint16_t other = way_in(&bucket->places[place].key);
        uint32_t count = count_way_in(bucket, other);

        if (other != in && count > most) {
            loser = other;
            most = count;
        }
    }
    if (count_way_in(bucket, loser) == 0) /* as many ways in as places, and one more */
        loser = way_in(&bucket->places[0].key);
    for (uint32_t place = 0; place < PLACES; place++) {
        struct datagram *datagram = &bucket->places[place];

        if (way_in(&datagram->key) == loser && (!oldest || (int32_t)(datagram->age - oldest->age) < 0))
            oldest = datagram;
    }
    return oldest;
}

static struct datagram *place_for(struct rway_datagram_bucket *bucket, const struct rway_conntrack_key *key,
                                  uint32_t now)
{
    struct datagram *known = find(bucket, key);

    for (uint32_t place = 0; !known && place < PLACES; place++)
        if (bucket->places[place].key.words[5] == 0 || rway_conntrack_expired(bucket->places[place].deadline, now))
            known = &bucket->places[place];
    return known ? known : displaced(bucket, way_in(key));
}

/* ---- verdicts ---- */

void rway_datagram_note_first(const struct rway_conntrack *conntrack, const struct rway_judged *frame, uint32_t in_port,
                              uint32_t out_port, uint32_t now)
{
    struct rway_datagram_bucket *bucket;
    struct datagram *datagram;
    struct fragment fragment;

    if (!read_fragment(frame, in_port, out_port, &fragment))
        return;
    bucket = lock_bucket(conntrack, &fragment.datagram);
    if (frame->stopped == RWAY_PASSES) {
        datagram = place_for(bucket, &fragment.datagram, now);
        *datagram = (struct datagram){.key = fragment.datagram,
                                      .deadline = now + REMEMBERED_S,
                                      .age = bucket->made++,
                                      .first_end = fragment.ends};
    } else if ((datagram = find(bucket, &fragment.datagram)) != NULL) {
        *datagram = (struct datagram){0};
    }
    rway_unlock(&bucket->lock);
}

bool rway_datagram_passes_later(const struct rway_conntrack *conntrack, const struct rway_judged *frame,
                                uint32_t in_port, uint32_t out_port, uint32_t now)
{
    struct rway_datagram_bucket *bucket;
    const struct datagram *datagram;
    struct fragment fragment;
    bool passes;

    if (!read_fragment(frame, in_port, out_port, &fragment))
        return false;
    bucket = lock_bucket(conntrack, &fragment.datagram);
    datagram = find(bucket, &fragment.datagram);
    passes = datagram && !rway_conntrack_expired(datagram->deadline, now) && fragment.begins >= datagram->first_end;
    rway_unlock(&bucket->lock);
    return passes;
}
