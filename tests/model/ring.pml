/*
 * A ring with one producer and one consumer (shm/producer.c, shm/consumer.c): frames of one and of two slots.
 *
 * Claims: a frame that is peeked is the next one that was published, whole, with its own descriptor and bytes, and
 * stays so until it is released; the producer fills no slot that the consumer has not done with; head and tail never
 * contradict each other; nobody gets stuck.
 *
 * Counters are taken modulo COUNTERS and pass zero again and again; frames are numbered modulo COUNTERS too. So there
 * is no last frame: what is searched is a ring that runs for ever.
 */
#define SLOTS 4
#define COUNTERS 8
#define MODULO(counter) ((counter) & (COUNTERS - 1))
#define INDEX(counter) ((counter) & (SLOTS - 1))

/* The words: head, tail, and of each slot its descriptor and its bytes. */
#define HEAD 0
#define TAIL 1
#define DESC(counter) (2 + INDEX(counter))
#define BYTES(counter) (2 + SLOTS + INDEX(counter))
#define WORDS (2 + 2 * SLOTS)

#ifndef STORES
#define STORES 5
#endif
#include "memory.pml"

/* A descriptor has its frame's number and length, or says that its slot continues the frame before it. */
#define FRAME(number, two) (1 + 2 * (number) + (two))
#define NUMBER(desc) (((desc) - 1) / 2)
#define TWO(desc) (((desc) - 1) & 1)
#define CONTINUATION 255

#define PRODUCER 0
#define CONSUMER 1

byte finished; /* the consumer looks at no slot before it any more; a fact for the asserts, which nobody else knows */

#ifdef HEAD_STORED_RELAXED
#define HEAD_ORDER RELAXED
#else
#define HEAD_ORDER RELEASE
#endif

inline fill(at, what)
{
    assert(MODULO(at - finished) < SLOTS);
    store(PRODUCER, BYTES(at), what, RELAXED)
}

inline describe()
{
    store(PRODUCER, DESC(head), FRAME(number, two), RELAXED);
    if
    :: two -> store(PRODUCER, DESC(head + 1), CONTINUATION, RELAXED)
    :: else
    fi
}

#ifdef TAIL_NOT_LOOKED_AT
#define ROOM SLOTS
#else
#define ROOM (SLOTS - MODULO(head - peer_tail))
#endif

proctype Producer()
{
    byte head, peer_tail, number;
    bool two;
    do
    :: d_step {
            word[TAIL] != peer_tail ->
            assert(MODULO(word[TAIL] - peer_tail) <= MODULO(head - peer_tail));
            peer_tail = word[TAIL]
        }
    :: atomic {
            ROOM > 0 ->
            if
            :: two = false
            :: ROOM > 1 -> two = true
            fi
        }
        fill(head, number);
        if
        :: two -> fill(head + 1, number)
        :: else
        fi;
#ifndef HEAD_BEFORE_DESCRIPTOR
        describe();
#endif
#ifdef FRAME_IN_TWO_STEPS
        if
        :: two -> store(PRODUCER, HEAD, MODULO(head + 1), HEAD_ORDER)
        :: else
        fi;
#endif
        store(PRODUCER, HEAD, MODULO(head + 1 + two), HEAD_ORDER);
#ifdef HEAD_BEFORE_DESCRIPTOR
        describe();
#endif
        d_step {
            head = MODULO(head + 1 + two);
            number = MODULO(number + 1);
            two = false
        }
    od
}

/* Load a word once. The first load behind head's may have been done before it, where head's is no acquire. */
inline load(into, where)
{
#ifdef HEAD_LOADED_RELAXED
    if
    :: early_from == where -> into = early
    :: else -> into = word[where]
    fi
#else
    into = word[where]
#endif
}

inline peek()
{
    load(desc, DESC(cursor));
    assert(desc != 0 && desc != CONTINUATION);
    assert(NUMBER(desc) == number);
    assert(MODULO(cursor + 1 + TWO(desc) - tail) <= MODULO(peer_head - tail));
    load(bytes, BYTES(cursor));
    assert(bytes == number);
    bytes = 0;
    if
    :: TWO(desc) ->
        assert(word[DESC(cursor + 1)] == CONTINUATION);
        assert(word[BYTES(cursor + 1)] == number)
    :: else
    fi;
    d_step {
        cursor = MODULO(cursor + 1 + TWO(desc));
        number = MODULO(number + 1);
        desc = 0
    }
}

proctype Consumer()
{
    byte tail, cursor, peer_head, number, desc, bytes;
#ifdef HEAD_LOADED_RELAXED
    byte early_from, early;
#endif
    do
#ifdef HEAD_LOADED_RELAXED
    :: cursor == peer_head -> d_step { early_from = DESC(cursor); early = word[early_from] }
    :: cursor == peer_head -> d_step { early_from = BYTES(cursor); early = word[early_from] }
#endif
    :: d_step {
            cursor == peer_head && word[HEAD] != peer_head ->
            assert(MODULO(word[HEAD] - peer_head) <= MODULO(tail + SLOTS - peer_head));
            peer_head = word[HEAD]
        }
    :: cursor != peer_head ->
#ifdef TAIL_BEFORE_READING
        store(CONSUMER, TAIL, peer_head, RELEASE);
#endif
        peek()
    :: cursor != tail ->
        d_step { tail = cursor; finished = cursor }
#ifndef TAIL_BEFORE_READING
        store(CONSUMER, TAIL, tail, RELEASE)
#endif
    od
}

init
{
    atomic {
        run Memory(PRODUCER);
        run Memory(CONSUMER);
        run Producer();
        run Consumer()
    }
}
