/*
 * A good forwarder with one bad neighbour, who may write anything into all of their region at any time. So whatever is
 * loaded from that region, at attach as well, is any value, and another one each time that it is loaded.
 *
 *      BAD_IN     a bad producer, the forwarder, a good consumer
 *      BAD_OUT    a good producer, the forwarder, a bad consumer
 *
 * Claims: no slot outside a ring is touched, and none that the good end has not been given; each walk ends within as
 * many steps as a ring has slots; the bad region is whole for the forwarder, with counters that do not contradict each
 * other, or broken for good; and the good neighbour gets whole frames and true counters, and is never stuck.
 *
 * Counters are modulo COUNTERS, and begin anywhere. A frame's length is counted in slots.
 */
#define SLOTS 4
#define COUNTERS 8
#define MODULO(counter) ((counter) & (COUNTERS - 1))
#define INDEX(counter) ((counter) & (SLOTS - 1))
#define BURST 2
#define FRAME_MAX 2

/* Kinds of descriptor; any other is none. */
#define FRAME 1
#define CONTINUATION 2
#define KINDS 4

typedef Desc {
    byte kind;
    byte slots;
    byte length
};
typedef Ring {
    byte head;
    byte tail;
    Desc desc[SLOTS]
};
Ring in;
Ring out;

#ifdef BAD_IN
#define LOAD_IN(into, word, most) select(into : 0 .. most)
#else
#define LOAD_IN(into, word, most) into = word
#endif
#ifdef BAD_OUT
#define LOAD_OUT(into, word, most) select(into : 0 .. most)
#else
#define LOAD_OUT(into, word, most) into = word
#endif
#define ANY (COUNTERS - 1)

/* ---- the good neighbours ---- */

#define DESCRIBE(ring, position, k, s, l) \
    ring.desc[INDEX(position)].kind = k; \
    ring.desc[INDEX(position)].slots = s; \
    ring.desc[INDEX(position)].length = l

inline write_frame(ring, position, slots_of_it)
{
    DESCRIBE(ring, position, FRAME, slots_of_it, slots_of_it);
    if
    :: slots_of_it == 2 -> DESCRIBE(ring, position + 1, CONTINUATION, 0, 0)
    :: else
    fi
}

#ifdef BAD_OUT

proctype GoodProducer()
{
    byte head, peer_tail, length;
end:
    do
    :: atomic {
            in.tail != peer_tail ->
            assert(MODULO(in.tail - peer_tail) <= MODULO(head - peer_tail));
            peer_tail = in.tail
        }
    :: atomic {
            MODULO(head - peer_tail) < SLOTS ->
            if
            :: length = 1
            :: MODULO(head - peer_tail) < SLOTS - 1 -> length = 2
            fi;
            write_frame(in, head, length);
            head = MODULO(head + length);
            in.head = head;
            length = 0
        }
    :: MODULO(head - peer_tail) == SLOTS && in.tail == peer_tail -> in.tail != peer_tail
    od
}

#else

proctype GoodConsumer()
{
    byte tail, length;
end:
    do
    :: atomic {
            out.head != tail ->
            assert(MODULO(out.head - tail) <= SLOTS);
            assert(out.desc[INDEX(tail)].kind == FRAME);
            length = out.desc[INDEX(tail)].length;
            assert(length >= 1 && length <= FRAME_MAX && length <= MODULO(out.head - tail));
            assert(out.desc[INDEX(tail)].slots == length);
            assert(length == 1 || out.desc[INDEX(tail + 1)].kind == CONTINUATION);
            tail = MODULO(tail + length);
            length = 0;
            out.tail = tail
        }
    od
}

#endif

/* ---- the forwarder ---- */

#ifdef BAD_IN
#define LOOKS_WORTH_IT true
#else
#define LOOKS_WORTH_IT (in.head != cursor)
#endif

inline fetch(position)
{
    LOAD_IN(kind, in.desc[INDEX(position)].kind, KINDS - 1);
    LOAD_IN(slots, in.desc[INDEX(position)].slots, SLOTS + 1);
    LOAD_IN(length, in.desc[INDEX(position)].length, FRAME_MAX + 1)
}

/* Is what was fetched a frame that lies within what is available? */
inline check(position, available)
{
#ifdef SLOTS_ARE_BELIEVED
    whole = kind == FRAME;
#else
    whole = kind == FRAME && length >= 1 && slots == length;
#endif
#ifndef LENGTH_IS_NOT_CHECKED
    whole = whole && length <= FRAME_MAX;
#endif
#ifndef FRAMES_MAY_BE_INCOMPLETE
    whole = whole && slots <= available;
#endif
    if
    :: whole && slots == 2 ->
        LOAD_IN(second, in.desc[INDEX(position + 1)].kind, KINDS - 1);
        whole = second == CONTINUATION;
        second = 0
    :: else
    fi
}

/* Take up the input where a killed forwarder had begun to hand frames on, if what it says can be. */
inline take_begun()
{
    LOAD_IN(begun, 0, ANY);
    if
#ifdef BEGUN_IS_NOT_COMPARED_WITH_HEAD
    :: begun != 0 ->
#else
    :: begun != 0 && MODULO(begun - tail) <= MODULO(peer_head - tail) ->
#endif
        cursor = tail;
        whole = true;
        do
        :: cursor == begun || !whole -> break
        :: else ->
            fetch(cursor);
            check(cursor, MODULO(begun - cursor));
            cursor = MODULO(cursor + slots);
            steps++;
            assert(steps <= SLOTS)
        od;
        tail = (whole -> begun : tail)
    :: else
    fi;
    steps = 0;
    begun = 0;
    kind = 0;
    slots = 0;
    length = 0
}

inline attach()
{
    LOAD_IN(tail, in.tail, ANY);
    LOAD_IN(peer_head, in.head, ANY);
    in_broken = MODULO(peer_head - tail) > SLOTS;
    LOAD_OUT(head, out.head, ANY);
    LOAD_OUT(peer_tail, out.tail, ANY);
#ifndef ATTACHES_TO_ANY_COUNTERS
    out_broken = MODULO(head - peer_tail) > SLOTS;
#endif
#ifdef BAD_IN
    if
    :: !in_broken -> take_begun()
    :: else
    fi;
#endif
    assert(in_broken || MODULO(peer_head - tail) <= SLOTS);
    assert(out_broken || MODULO(head - peer_tail) <= SLOTS);
    peer_head = tail;
    cursor = tail
}

inline look_at_head()
{
    LOAD_IN(loaded, in.head, ANY);
#ifndef HEAD_IS_NOT_CHECKED
    in_broken = MODULO(loaded - peer_head) > MODULO(tail + SLOTS - peer_head);
#endif
#ifdef HEAD_IS_LOADED_TWICE
    LOAD_IN(loaded, in.head, ANY);
#endif
    peer_head = (in_broken -> peer_head : loaded);
    loaded = 0
}

inline peek()
{
    if
    :: cursor == peer_head -> look_at_head()
    :: else
    fi;
    assert(MODULO(peer_head - tail) <= SLOTS);
    do
    :: taken == BURST || cursor == peer_head || in_broken -> break
    :: else ->
        fetch(cursor);
        check(cursor, MODULO(peer_head - cursor));
#ifdef DESCRIPTOR_IS_LOADED_TWICE
        LOAD_IN(slots, in.desc[INDEX(cursor)].slots, SLOTS + 1);
#endif
        in_broken = !whole;
        if
        :: whole ->
            assert(slots >= 1 && MODULO(cursor + slots - tail) <= SLOTS);
            assert(MODULO(cursor + slots - tail) <= MODULO(peer_head - tail));
            cursor = MODULO(cursor + slots);
            lengths[taken] = length;
            taken++
        :: else
        fi;
        steps++;
        assert(steps <= SLOTS)
    od;
    steps = 0;
    kind = 0;
    slots = 0;
    length = 0
}

#define ROOM (SLOTS - MODULO(claimed - peer_tail))

inline look_at_tail()
{
    LOAD_OUT(loaded, out.tail, ANY);
#ifndef TAIL_IS_NOT_CHECKED
    out_broken = MODULO(loaded - peer_tail) > MODULO(head - peer_tail);
#endif
#ifdef TAIL_IS_LOADED_TWICE
    LOAD_OUT(loaded, out.tail, ANY);
#endif
    peer_tail = (out_broken -> peer_tail : loaded);
    loaded = 0
}

/* A frame that finds no room, or no whole region, is dropped. */
inline claim_and_fill()
{
    claimed = head;
    do
    :: steps == taken -> break
    :: else ->
        if
        :: !out_broken && ROOM < lengths[steps] -> look_at_tail()
        :: else
        fi;
        if
        :: !out_broken && lengths[steps] > 0 && ROOM >= lengths[steps] ->
            assert(MODULO(claimed + lengths[steps] - peer_tail) <= SLOTS);
#ifndef BAD_OUT /* whom nobody asks what he reads */
            write_frame(out, claimed, lengths[steps]);
#endif
            claimed = MODULO(claimed + lengths[steps])
        :: else
        fi;
        lengths[steps] = 0;
        steps++
    od;
    steps = 0;
    taken = 0
}

proctype Forwarder()
{
    byte tail, cursor, peer_head, head, claimed, peer_tail, begun;
    byte kind, slots, length, second, loaded, taken, steps;
    byte lengths[BURST];
    bool whole, in_broken, out_broken;
    atomic { attach() };
end:
    do
#ifdef BROKEN_OUTPUT_STOPS_THE_INPUT
    :: atomic { !in_broken && !out_broken && LOOKS_WORTH_IT -> peek() };
#else
    :: atomic { !in_broken && LOOKS_WORTH_IT -> peek() };
#endif
        atomic { claim_and_fill() };
        d_step { tail = cursor; in.tail = tail };
        d_step { head = (out_broken -> head : claimed); claimed = 0; out.head = head };
        assert(MODULO(peer_head - tail) <= SLOTS);
        assert(out_broken || MODULO(head - peer_tail) <= SLOTS)
    od
}

init
{
    atomic {
        run Forwarder();
#ifdef BAD_IN
        run GoodConsumer()
#else
        run GoodProducer()
#endif
    }
}
