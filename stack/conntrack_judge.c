/*
 * Decides over a burst of frames with the connections that a filter remembers.
 *
 *      the frame's connection      what decides
 *      known                       nothing: it passes, in either direction
 *      known, and rules changed    first the rules, over the frame that opened it; denied, none of its frames passes
 *      known, denied; the far end  the rules, if the one that allows its frame is for this direction only: it is as if
 *                                  the connection were unknown
 *      known, over; a new SYN      the rules; allowed, it is a new connection in the same place
 *      unknown                     the rules; allowed, it is known from here on if there is room, else it is dropped
 *      known, not a segment        TCP flags that none has: it is dropped
 *      none: a later fragment      it follows its datagram's first one if that passed; else the rules
 *      none (ARP, other ICMP, …)   an ICMP error about a known connection passes; over all else the rules decide
 *
 * A connection that changed rules deny is not forgotten at once: under a default of "allow" the next frame from its
 * other end would make it known again, the other way round, and it would go on. So what allows a frame counts here only
 * if it speaks for the direction: a rule that matches frames this way and not those the other way. The default, and a
 * rule that matches both, have not been asked about this end.
 */
#include <stdlib.h>
#include <string.h>

#include "conntrack.h"

enum { SWEPT = 2 /* buckets looked through in each turn */ };

/* Two lines apart from the next one's: processors fetch lines in pairs. Writer: the reader's thread. */
struct rway_conntrack_reader {
    struct rway_conntrack *conntrack;
    const struct rway_filter_table *table;
    struct rway_rule_counts *rule_counts;
    uint32_t now;
    uint32_t swept; /* the bucket that is next */
    uint32_t in_port;
    uint32_t out_port;
    struct rway_conntrack_counts counts;
    struct rway_conntrack_key keys[RWAY_CONNTRACK_BURST];
    struct rway_conntrack_probe probes[RWAY_CONNTRACK_BURST];
    bool followed[RWAY_CONNTRACK_BURST]; /* it has a key */
    bool from_low[RWAY_CONNTRACK_BURST];
} __attribute__((aligned(2 * RWAY_LINE)));

struct rway_conntrack_reader *rway_conntrack_readers_new(struct rway_conntrack *conntrack)
{
    size_t size = sizeof(struct rway_conntrack_reader) * RWAY_READERS_MAX;
    struct rway_conntrack_reader *readers = aligned_alloc(2 * RWAY_LINE, size);

    if (!readers)
        return NULL;
    memset(readers, 0, size);
    for (uint32_t reader = 0; reader < RWAY_READERS_MAX; reader++) {
        readers[reader].conntrack = conntrack;
        readers[reader].swept = (uint32_t)((uint64_t)conntrack->bucket_count * reader / RWAY_READERS_MAX);
    }
    return readers;
}

struct rway_conntrack_reader *rway_conntrack_reader_at(struct rway_conntrack_reader *readers, uint32_t reader)
{
    return &readers[reader];
}

/* Relaxed on both sides: whole words of a moment ago. */
static void count(uint64_t *counter, uint64_t more)
{
    rway_write_once(counter, *counter + more);
}

void rway_conntrack_counts_add(const struct rway_conntrack_reader *reader, struct rway_conntrack_counts *sum)
{
    const struct rway_conntrack_counts *counts = &reader->counts;

    sum->frames += rway_read_once(&counts->frames);
    sum->bytes += rway_read_once(&counts->bytes);
    sum->made += rway_read_once(&counts->made);
    sum->gone += rway_read_once(&counts->gone);
    sum->replaced += rway_read_once(&counts->replaced);
    sum->refused += rway_read_once(&counts->refused);
    sum->fragments += rway_read_once(&counts->fragments);
    sum->fragment_bytes += rway_read_once(&counts->fragment_bytes);
    sum->invalid += rway_read_once(&counts->invalid);
    sum->invalid_bytes += rway_read_once(&counts->invalid_bytes);
}

void rway_conntrack_turn(struct rway_conntrack_reader *reader, const struct rway_filter_table *table,
                         struct rway_rule_counts *counts, uint32_t now_s)
{
    const struct rway_conntrack *conntrack = reader->conntrack;

    reader->table = table;
    reader->rule_counts = counts;
    reader->now = now_s;
    for (uint32_t left = SWEPT; left != 0; left--) {
        uint32_t freed = rway_conntrack_sweep(conntrack, reader->swept, now_s);

        if (freed != 0)
            count(&reader->counts.gone, freed);
        reader->swept = reader->swept + 1 < conntrack->bucket_count ? reader->swept + 1 : 0;
    }
    for (uint32_t ahead = 0; ahead < SWEPT && reader->swept + ahead < conntrack->bucket_count; ahead++)
        __builtin_prefetch(&conntrack->buckets[reader->swept + ahead], 1);
}

static int judge_by_rules(struct rway_conntrack_reader *reader, const struct rway_judged *frame)
{
    int action =
        rway_filter_judge(reader->table, frame->headers, reader->in_port, reader->rule_counts, frame->frame_len);

    return action == RWAY_ALLOW ? RWAY_PASSES : RWAY_DROP_POLICY;
}

/* The rule under which the opener of a connection falls now. */
static uint32_t find_for_opener(const struct rway_conntrack_reader *reader, const struct rway_connection *connection)
{
    struct rway_headers headers;
    uint32_t in_port =
        rway_conntrack_headers(&connection->key, connection->opened_low, connection->tcp_flags, &headers);

    return rway_filter_find(reader->table, &headers, in_port);
}

/* Rules that have changed are asked again. Loops may hold different ones for a moment, and then ask in turn. */
static bool is_admitted(const struct rway_conntrack_reader *reader, const struct rway_conntrack_hold *hold)
{
    struct rway_connection *connection = hold->connection;
    uint8_t *state = &hold->bucket->states[hold->way];

    if (connection->generation != reader->table->generation) {
        uint32_t index = find_for_opener(reader, connection);

        connection->generation = reader->table->generation;
        if (rway_filter_action(reader->table, index) == RWAY_ALLOW)
            *state &= (uint8_t)~RWAY_CONNTRACK_DENIED;
        else
            *state |= RWAY_CONNTRACK_DENIED;
    }
    return !(*state & RWAY_CONNTRACK_DENIED);
}

/* Nothing is written that stays as it is: between two seconds the line is only read. */
static void keep(const struct rway_conntrack_reader *reader, const struct rway_conntrack_hold *hold, uint8_t state)
{
    uint32_t timeout =
        rway_conntrack_timeout(&reader->conntrack->timeouts, rway_conntrack_protocol(&hold->connection->key), state);
    uint32_t deadline = reader->now + timeout;

    if (hold->bucket->states[hold->way] != state)
        hold->bucket->states[hold->way] = state;
    if (hold->bucket->deadlines[hold->way] != deadline)
        hold->bucket->deadlines[hold->way] = deadline;
}

/* Is it for one direction of a connection: a rule that matches frames this way, and would not match those that way? */
static bool tells_direction(const struct rway_conntrack_reader *reader, uint32_t rule, uint32_t index, bool from_low,
                            uint8_t tcp_flags)
{
    struct rway_headers opposite;
    uint32_t in_port = rway_conntrack_headers(&reader->keys[index], !from_low, tcp_flags, &opposite);

    return !rway_filter_matches(reader->table, rule, &opposite, in_port);
}

/*
 * TCP under way, of which the opening was not seen (the agent is new, or it was silent for too long). Who opened it is
 * not known. It is taken up as if the end that speaks had opened it, unless a rule denies the other direction and tells
 * it from this one: then the frames go on being judged one by one. A rule that denies both, as the last of many rule
 * sets does, says no more than a default of "deny". And where a rule for this direction lets this end open, the other
 * end has the answers to that whatever denies it, and has them here.
 */
static bool may_take_up(const struct rway_conntrack_reader *reader, uint32_t index)
{
    enum { SYN = 2, ACK = 16 };
    bool from_low = reader->from_low[index];
    struct rway_headers headers;
    uint32_t in_port = rway_conntrack_headers(&reader->keys[index], !from_low, ACK, &headers);
    uint32_t rule = rway_filter_find(reader->table, &headers, in_port);

    if (rway_filter_action(reader->table, rule) == RWAY_ALLOW || !tells_direction(reader, rule, index, !from_low, ACK))
        return true;
    in_port = rway_conntrack_headers(&reader->keys[index], from_low, SYN, &headers);
    rule = rway_filter_find(reader->table, &headers, in_port);
    return rway_filter_action(reader->table, rule) == RWAY_ALLOW && tells_direction(reader, rule, index, from_low, SYN);
}

static bool opens(const struct rway_conntrack_reader *reader, const struct rway_judged *frame, uint32_t index)
{
    enum rway_conntrack_opening opening;

    if (frame->headers->protocol != IPPROTO_TCP)
        return rway_conntrack_opens(frame);
    opening = rway_conntrack_opens_tcp(frame->headers->tcp_flags);
    return opening == RWAY_CONNTRACK_OPENS || (opening == RWAY_CONNTRACK_UNDER_WAY && may_take_up(reader, index));
}

static void count_made(struct rway_conntrack_reader *reader, enum rway_conntrack_made made)
{
    count(&reader->counts.made, 1);
    if (made != RWAY_CONNTRACK_IN_FREE)
        count(&reader->counts.gone, 1);
    if (made == RWAY_CONNTRACK_FOR_ANOTHER)
        count(&reader->counts.replaced, 1);
}

static int judge_unknown(struct rway_conntrack_reader *reader, const struct rway_judged *frame, uint32_t index,
                         struct rway_conntrack_hold *hold)
{
    enum rway_conntrack_made made;

    if (judge_by_rules(reader, frame) != RWAY_PASSES)
        return RWAY_DROP_POLICY;
    if (!opens(reader, frame, index))
        return RWAY_PASSES;
    made = rway_conntrack_make(reader->conntrack, &reader->probes[index], &reader->keys[index], reader->now, hold);
    if (made == RWAY_CONNTRACK_NO_ROOM) {
        count(&reader->counts.refused, 1);
        return RWAY_DROP_CONNECTIONS;
    }
    count_made(reader, made);
    hold->connection->generation = reader->table->generation;
    hold->connection->opened_low = reader->from_low[index];
    keep(reader, hold, rway_conntrack_begin(hold->connection, frame));
    return RWAY_PASSES;
}

static void count_frame(uint64_t *frames, uint64_t *bytes, const struct rway_judged *frame)
{
    count(frames, 1);
    count(bytes, frame->frame_len);
}

static void count_established(struct rway_conntrack_reader *reader, const struct rway_judged *frame)
{
    count_frame(&reader->counts.frames, &reader->counts.bytes, frame);
}

/*
 * A connection whose opener the rules deny. TCP says by a SYN when something else begins (rway_conntrack_begins_anew);
 * of other protocols any frame of the far end may, where a rule for its direction allows it. The verdict lasts only as
 * long as it is needed: frames that the rules deny by themselves do not renew it.
 */
static int judge_denied(struct rway_conntrack_reader *reader, const struct rway_judged *frame, uint32_t index,
                        bool from_opener, struct rway_conntrack_hold *hold)
{
    bool lasts = frame->headers->protocol == IPPROTO_TCP;

    if (!lasts && !from_opener) {
        uint32_t rule = rway_filter_find(reader->table, frame->headers, reader->in_port);

        lasts = rway_filter_action(reader->table, rule) == RWAY_ALLOW;
        if (lasts && tells_direction(reader, rule, index, reader->from_low[index], 0))
            return judge_unknown(reader, frame, index, hold);
    }
    if (lasts)
        keep(reader, hold, hold->bucket->states[hold->way]);
    rway_count_frame(&reader->rule_counts[find_for_opener(reader, hold->connection)], frame->frame_len);
    return RWAY_DROP_POLICY;
}

static int judge_known(struct rway_conntrack_reader *reader, const struct rway_judged *frame, uint32_t index,
                       bool from_opener, struct rway_conntrack_hold *hold)
{
    uint8_t state;

    if (frame->headers->protocol == IPPROTO_TCP && !rway_conntrack_is_segment(frame->headers->tcp_flags)) {
        count_frame(&reader->counts.invalid, &reader->counts.invalid_bytes, frame);
        return RWAY_DROP_POLICY;
    }
    if (!is_admitted(reader, hold))
        return judge_denied(reader, frame, index, from_opener, hold);
    state = hold->bucket->states[hold->way];
    keep(reader, hold, rway_conntrack_advance(hold->connection, state, frame, from_opener));
    count_established(reader, frame);
    return RWAY_PASSES;
}

static int judge_followed(struct rway_conntrack_reader *reader, const struct rway_judged *frame, uint32_t index)
{
    struct rway_conntrack_hold hold;
    bool from_opener;
    int stopped;

    rway_conntrack_find(reader->conntrack, &reader->probes[index], &reader->keys[index], &hold);
    from_opener = hold.connection && hold.connection->opened_low == reader->from_low[index];
    if (!hold.connection || rway_conntrack_expired(hold.bucket->deadlines[hold.way], reader->now) ||
        rway_conntrack_begins_anew(hold.connection, hold.bucket->states[hold.way], frame, from_opener))
        stopped = judge_unknown(reader, frame, index, &hold);
    else
        stopped = judge_known(reader, frame, index, from_opener, &hold);
    rway_conntrack_let_go(&hold);
    return stopped;
}

/* An error about a known connection; it neither makes one known nor lets it last (RFC 5508 REQ-4). */
static bool is_error_of_known(struct rway_conntrack_reader *reader, const struct rway_judged *frame)
{
    struct rway_conntrack_probe probe;
    struct rway_conntrack_hold hold;
    struct rway_conntrack_key key;
    bool known;

    if (!rway_conntrack_key_of_error(frame, reader->in_port, reader->out_port, &key))
        return false;
    probe = rway_conntrack_probe(reader->conntrack, &key);
    rway_conntrack_find(reader->conntrack, &probe, &key, &hold);
    known = hold.connection && !rway_conntrack_expired(hold.bucket->deadlines[hold.way], reader->now) &&
            is_admitted(reader, &hold);
    rway_conntrack_let_go(&hold);
    return known;
}

static int judge_other(struct rway_conntrack_reader *reader, const struct rway_judged *frame)
{
    if (frame->headers->flags & RWAY_HEADERS_LATER_FRAGMENT &&
        rway_datagram_passes_later(reader->conntrack, frame, reader->in_port, reader->out_port, reader->now)) {
        count_frame(&reader->counts.fragments, &reader->counts.fragment_bytes, frame);
        return RWAY_PASSES;
    }
    if (!is_error_of_known(reader, frame))
        return judge_by_rules(reader, frame);
    count_established(reader, frame);
    return RWAY_PASSES;
}

/* Fetch for all frames what the decisions will need; each step for all before the next one, so that they overlap. */
static void fetch(struct rway_conntrack_reader *reader, const struct rway_judged *frames, uint32_t frame_count)
{
    const struct rway_conntrack *conntrack = reader->conntrack;
    uint32_t missed = 0; /* bit i: frame i is not in its first bucket */

    for (uint32_t i = 0; i < frame_count; i++) {
        reader->followed[i] = rway_conntrack_key_of(&frames[i], reader->in_port, reader->out_port, &reader->keys[i],
                                                    &reader->from_low[i]);
        if (!reader->followed[i])
            continue;
        reader->probes[i] = rway_conntrack_probe(conntrack, &reader->keys[i]);
        rway_conntrack_fetch_first(conntrack, &reader->probes[i]);
    }
    for (uint32_t i = 0; i < frame_count; i++)
        if (reader->followed[i] && !rway_conntrack_fetch_flow(conntrack, &reader->probes[i]))
            missed |= 1u << i;
    for (; missed != 0; missed &= missed - 1)
        rway_conntrack_fetch_second(conntrack, &reader->probes[__builtin_ctz(missed)]);
}

void rway_conntrack_judge(struct rway_conntrack_reader *reader, uint32_t in_port, uint32_t out_port,
                          struct rway_judged *frames, uint32_t frame_count)
{
    reader->in_port = in_port;
    reader->out_port = out_port;
    while (frame_count != 0) {
        uint32_t burst = frame_count < RWAY_CONNTRACK_BURST ? frame_count : RWAY_CONNTRACK_BURST;

        fetch(reader, frames, burst);
        for (uint32_t i = 0; i < burst; i++) {
            frames[i].stopped =
                reader->followed[i] ? judge_followed(reader, &frames[i], i) : judge_other(reader, &frames[i]);
            if (frames[i].headers->flags & RWAY_HEADERS_FIRST_FRAGMENT)
                rway_datagram_note_first(reader->conntrack, &frames[i], in_port, out_port, reader->now);
        }
        frames += burst;
        frame_count -= burst;
    }
}
