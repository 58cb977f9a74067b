/*
 * What a connection has been through, and how long it is remembered.
 *
 * TCP (RFC 9293 3.3.2), as far as time-outs and room need it. "Acknowledged" means that the number which the frame must
 * carry was in it: whoever sends with another's address does not see that number, and cannot make its connections last.
 *
 *      phase         frame                                         becomes
 *      OPENING       from the other end: SYN, ACK, acknowledged    ANSWERED
 *      OPENING       taken up under way: any answer with ACK       ESTABLISHED
 *      ANSWERED      from the opener: ACK, acknowledged            ESTABLISHED
 *      not yet       from the opener: another SYN                  OPENING, with its numbers
 *      ESTABLISHED   FIN, RST                                      noted by sender; both FINs, or a RST: less time
 *      ESTABLISHED   ACK from the end that a RST was meant for     the RST is forgotten: that end has not believed it
 *
 * Sequence numbers of a RST or FIN are not compared with the connection's, which would mean to write the connection
 * with each frame. So a forged RST that is let through costs an idle connection its long time-out and, in a full table,
 * its turn to give way: see rway_conntrack_yields.
 *
 * UDP and SCTP are established by the first answer; an ICMP echo never is, because the next request opens it again.
 */
#include "conntrack.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

enum { ACKNOWLEDGED_WITHIN = 65536 /* bytes sent with a SYN or right after it may be acknowledged as well */ };

static uint32_t read32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* What a TCP header says; rway_parse has seen that all of it is there. */
struct segment {
    uint32_t sequence;
    uint32_t acknowledgement;
    uint8_t flags;
};

static struct segment segment_of(const struct rway_judged *frame)
{
    const uint8_t *tcp = frame->bytes + frame->headers->l4_offset;

    return (struct segment){read32(tcp + 4), read32(tcp + 8), frame->headers->tcp_flags};
}

static bool has_only(uint8_t flags, uint8_t mask, uint8_t value)
{
    return (flags & mask) == value;
}

enum rway_conntrack_opening rway_conntrack_opens_tcp(uint8_t flags)
{
    if (has_only(flags, SYN | ACK | RST | FIN, SYN))
        return RWAY_CONNTRACK_OPENS;
    return has_only(flags, SYN | ACK | RST, ACK) ? RWAY_CONNTRACK_UNDER_WAY : RWAY_CONNTRACK_OPENS_NOTHING;
}

uint8_t rway_conntrack_begin(struct rway_connection *connection, const struct rway_judged *frame)
{
    connection->sequence = 0;
    connection->tcp_flags = frame->headers->tcp_flags;
    if (frame->headers->protocol == IPPROTO_TCP && connection->tcp_flags & SYN)
        connection->sequence = segment_of(frame).sequence + 1;
    return RWAY_CONNTRACK_OPENING;
}

static uint8_t advance_established(uint8_t state, uint8_t flags, bool from_opener)
{
    if (flags & FIN)
        state |= from_opener ? RWAY_CONNTRACK_OPENER_FIN : RWAY_CONNTRACK_OTHER_FIN;
    if (has_only(flags, SYN | ACK, ACK))
        state &= (uint8_t)~(from_opener ? RWAY_CONNTRACK_OTHER_RST : RWAY_CONNTRACK_OPENER_RST);
    return state;
}

static uint8_t advance_handshake(struct rway_connection *connection, uint8_t state, const struct segment *segment,
                                 bool from_opener)
{
    uint8_t phase = state & RWAY_CONNTRACK_PHASE;
    bool acknowledged = segment->flags & ACK && segment->acknowledgement - connection->sequence < ACKNOWLEDGED_WITHIN;

    if (from_opener && has_only(segment->flags, SYN | ACK, SYN)) {
        connection->sequence = segment->sequence + 1;
        return RWAY_CONNTRACK_OPENING;
    }
    if (!(connection->tcp_flags & SYN))
        return !from_opener && has_only(segment->flags, SYN | ACK, ACK) ? RWAY_CONNTRACK_ESTABLISHED : state;
    if (phase == RWAY_CONNTRACK_OPENING && !from_opener && segment->flags & SYN && acknowledged) {
        connection->sequence = segment->sequence + 1;
        return RWAY_CONNTRACK_ANSWERED;
    }
    if (phase == RWAY_CONNTRACK_ANSWERED && from_opener && acknowledged)
        return advance_established(RWAY_CONNTRACK_ESTABLISHED, segment->flags, from_opener);
    return state;
}

static uint8_t advance_tcp(struct rway_connection *connection, uint8_t state, const struct segment *segment,
                           bool from_opener)
{
    if (segment->flags & RST)
        return state | (from_opener ? RWAY_CONNTRACK_OPENER_RST : RWAY_CONNTRACK_OTHER_RST);
    if ((state & RWAY_CONNTRACK_PHASE) == RWAY_CONNTRACK_ESTABLISHED)
        return advance_established(state, segment->flags, from_opener);
    return advance_handshake(connection, state, segment, from_opener);
}

uint8_t rway_conntrack_advance(struct rway_connection *connection, uint8_t state, const struct rway_judged *frame,
                               bool from_opener)
{
    uint8_t protocol = frame->headers->protocol;

    if (protocol == IPPROTO_TCP) {
        struct segment segment = segment_of(frame);

        return advance_tcp(connection, state, &segment, from_opener);
    }
    if (!from_opener && (protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP))
        return RWAY_CONNTRACK_ESTABLISHED;
    return state;
}

/* The addresses and ports of a connection that is over, or was denied, may be used again, by either end. */
bool rway_conntrack_begins_anew(const struct rway_connection *connection, uint8_t state,
                                const struct rway_judged *frame, bool from_opener)
{
    /*
     * Not by the opener's SYN over a RST: both may be forged, and the connection would be one that gives way. Should it
     * be a real one, it passes as a frame of the connection, and the ACKs that follow take the RST back.
     */
    bool over = state & RWAY_CONNTRACK_DENIED || (state & RWAY_CONNTRACK_FINS) == RWAY_CONNTRACK_FINS ||
                (state & RWAY_CONNTRACK_RSTS && !from_opener);

    if (frame->headers->protocol != IPPROTO_TCP ||
        rway_conntrack_opens_tcp(frame->headers->tcp_flags) != RWAY_CONNTRACK_OPENS)
        return false;
    if (over)
        return true;
    /* Both ends may open at once (RFC 9293 3.5), but only where the opening was seen: a SYN answers nothing else. */
    return !from_opener && !(connection->tcp_flags & SYN) &&
           (state & RWAY_CONNTRACK_PHASE) != RWAY_CONNTRACK_ESTABLISHED;
}

static uint32_t tcp_timeout(const struct rway_conntrack_timeouts *timeouts, uint8_t state)
{
    bool closing =
        state & (RWAY_CONNTRACK_RSTS | RWAY_CONNTRACK_DENIED) || (state & RWAY_CONNTRACK_FINS) == RWAY_CONNTRACK_FINS;

    if ((state & RWAY_CONNTRACK_PHASE) != RWAY_CONNTRACK_ESTABLISHED && !(state & RWAY_CONNTRACK_DENIED))
        return timeouts->tcp_opening;
    return closing ? timeouts->tcp_closing : timeouts->tcp_established;
}

uint32_t rway_conntrack_timeout(const struct rway_conntrack_timeouts *timeouts, uint8_t protocol, uint8_t state)
{
    if (protocol == IPPROTO_TCP)
        return tcp_timeout(timeouts, state);
    if (protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP)
        return (state & RWAY_CONNTRACK_PHASE) == RWAY_CONNTRACK_ESTABLISHED ? timeouts->udp_answered : timeouts->udp;
    return timeouts->icmp;
}

/*
 * A connection with a RST gives way after all that are over for certain: the RST may be forged. One that goes on has
 * its ACKs take the RST back; so what a forged one costs is the place of a connection that is silent just then, and
 * only while nothing else can give way. Never to give way would cost everybody: connections that end by RST would fill
 * the table.
 */
uint32_t rway_conntrack_yields(uint8_t state)
{
    if ((state & RWAY_CONNTRACK_PHASE) != RWAY_CONNTRACK_ESTABLISHED || state & RWAY_CONNTRACK_DENIED)
        return 3;
    if ((state & RWAY_CONNTRACK_FINS) == RWAY_CONNTRACK_FINS)
        return 2;
    return state & RWAY_CONNTRACK_RSTS ? 1 : 0;
}
