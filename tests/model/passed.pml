/*
 * A flow that changes its queue (stack/spread.c, stack/trail.c): a sender, a forwarder with a loop for each of two queues,
 * and a consumer behind it, which is killed and comes back as another kind of consumer.
 *
 *      sender ══ queue 0 ══ loop 0 ══ queue 0 ══ consumer of 0
 *             ══ queue 1 ══ loop 1 ══ queue 1 ══ consumer of 1
 *
 * Claim: of a flow no frame comes out of the chain behind a later one, or twice, whenever the flow moves and whoever is
 * killed. Consumers: an application that takes copies, says that they have passed, releases them and only then uses
 * them, one thread for both queues; then, a thread for each queue, those that hand frames on before they release them (a
 * tap) and those that release them first (another forwarder).
 *
 * Loops of one process are killed each by itself here, which allows more than kills of the process do. Rings have room for
 * all frames: a full one delays a flow, and orders nothing. Memory is not weak here; see ring.pml for what that tests.
 */
#ifndef LAST
#define LAST 3
#endif
#ifndef KILLS
#define KILLS 2
#endif
#define BURST 2

byte kills = KILLS;

#define STEP(action) \
    if \
    :: d_step { action } \
    :: d_step { kills > 0 -> kills-- }; goto killed \
    fi

typedef Queue {
    byte head;
    byte tail;
    byte passed;
    byte begun;
    byte frame[LAST] /* numbers, from 1 */
};
Queue in[2];  /* from the sender to the forwarder */
Queue out[2]; /* from there to the consumer */

byte last_out; /* number of the last frame that came out of the chain */

/* What has passed of a queue, as its producer is to believe it. */
#ifdef RELEASED_COUNTS_AS_PASSED
#define PASSED(queue) queue.tail
#elif defined(PASSED_IS_BELIEVED_BEYOND_TAIL)
#define PASSED(queue) queue.passed
#else
#define PASSED(queue) (queue.passed > queue.tail -> queue.tail : queue.passed)
#endif
#ifdef MOVES_AT_ONCE
#define MAY_LEAVE(queue) true
#else
#define MAY_LEAVE(queue) (PASSED(queue) >= queue.head)
#endif

inline come_out(number)
{
    assert(number > last_out);
    last_out = number
}

/* One flow, so that what a queue has is what the flow has put there. */
proctype Sender()
{
    byte number;
    bit queue;
    do
    :: number < LAST ->
        d_step {
            number++;
            in[queue].frame[in[queue].head] = number;
            in[queue].head++
        }
    :: d_step { number > 0 && number < LAST && MAY_LEAVE(in[queue]) -> queue = 1 - queue }
    :: number == LAST -> break
    od
}

inline set_back(queue)
{
#ifdef PASSED_IS_NOT_SET_BACK
    skip
#else
    if
    :: queue.passed > cursor -> STEP(queue.passed = cursor)
    :: else
    fi
#endif
}

inline take(queue)
{
    d_step {
        do
        :: count < BURST && queue.head > cursor ->
            burst[count] = queue.frame[cursor];
            cursor++;
            count++
        :: else -> break
        od
    }
}

inline put(queue)
{
    d_step {
        queue.frame[queue.head] = burst[0];
        if
        :: count > 1 -> queue.frame[queue.head + 1] = burst[1]
        :: else
        fi
    }
    STEP(queue.head = queue.head + count; count = 0; burst[0] = 0; burst[1] = 0)
}

/* Of the forwarder. What stack/trail.c calls taken is noted here, and sent is as there. */
proctype Loop(bit own)
{
    byte cursor, count, noted, sent;
    byte burst[BURST];
    bool open;
again:
    cursor = in[own].tail;
#ifdef RESTARTED_TRAIL_IS_AT_ITS_END
    noted = cursor;
    STEP(in[own].passed = cursor);
#endif
end:
    do
    :: in[own].head > cursor ->
        take(in[own]);
        STEP(in[own].tail = cursor);
        put(out[own]);
#ifdef PUBLISHED_COUNTS_AS_PASSED
        STEP(in[own].passed = cursor)
#endif
    :: open && PASSED(out[own]) >= sent ->
        STEP(in[own].passed = noted);
        open = false
    :: d_step { !open && cursor != noted -> noted = cursor; sent = out[own].head; open = true }
    od;
killed:
    atomic { cursor = 0; count = 0; burst[0] = 0; burst[1] = 0; noted = 0; sent = 0; open = false };
    goto again
}

/* The second consumer's thread for a queue. */
proctype Consumer(bit own)
{
    byte cursor, count, at;
    byte burst[BURST];
again:
    if
    :: out[own].begun > out[own].tail ->
        cursor = out[own].begun;
        STEP(out[own].tail = cursor)
    :: else -> cursor = out[own].tail
    fi;
    set_back(out[own]);
end:
    do
    :: out[own].head > cursor -> /* a tap */
        do
        :: out[own].head > cursor ->
            STEP(out[own].begun = cursor + 1);
            STEP(come_out(out[own].frame[cursor]); cursor++)
        :: cursor > out[own].tail -> break
        od;
        STEP(out[own].passed = cursor);
        STEP(out[own].tail = cursor)
    :: out[own].head > cursor -> /* a forwarder, seen from here */
        take(out[own]);
        STEP(out[own].tail = cursor);
#ifdef PASSED_BEFORE_HANDING_ON
        STEP(out[own].passed = cursor);
#endif
        do
        :: at < count -> STEP(come_out(burst[at]); at++)
        :: at == count -> break
        od;
        atomic { at = 0; count = 0; burst[0] = 0; burst[1] = 0 };
        STEP(out[own].passed = cursor)
    od;
killed:
    atomic { cursor = 0; count = 0; at = 0; burst[0] = 0; burst[1] = 0 };
    goto again
}

inline copy_out()
{
    cursor = out[own].tail;
    take(out[own]);
    STEP(out[own].passed = cursor);
    STEP(out[own].tail = cursor);
    do
    :: at < count -> STEP(come_out(burst[at]); at++)
    :: at == count -> break
    od;
    atomic { cursor = 0; at = 0; count = 0; burst[0] = 0; burst[1] = 0 }
}

/* The first consumer: rway_frames_copy_out, and what an application does with the copies. */
proctype Application()
{
    byte cursor, count, at;
    byte burst[BURST];
    bit own;
again:
    cursor = out[0].tail;
    set_back(out[0]);
    cursor = out[1].tail;
    set_back(out[1]);
    do
    :: atomic { out[0].head > out[0].tail -> own = 0 } copy_out()
    :: atomic { out[1].head > out[1].tail -> own = 1 } copy_out()
    :: goto killed
    od;
killed:
    atomic {
        cursor = 0; count = 0; at = 0; burst[0] = 0; burst[1] = 0; own = 0;
        if
        :: kills > 0 -> goto again
        :: run Consumer(0); run Consumer(1)
        fi
    }
}

init
{
    atomic {
        run Sender();
        run Loop(0);
        run Loop(1);
        run Application()
    }
    timeout;
    assert(last_out == LAST || kills < KILLS)
}
