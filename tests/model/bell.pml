/*
 * Sleeping and waking (shm/wait.c, and settle in shm/producer.c and shm/consumer.c), without the bound that ends each
 * sleep: what is shown does not rest on it.
 *
 * Claim: nobody sleeps while what he sleeps for is there and nobody is left to ring. So when no process can go on, all
 * that was published was consumed, and no producer waits for room.
 *
 * Each publish and release is either one that settles at once, or one of those (publish_more) that look at the wake
 * word without a fence and leave the rest to a later settle. A producer may stop after any frame, so that each is once
 * the last, whose bell nobody makes up for.
 *
 *      one ring     a producer and a consumer
 *      DUPLEX       two rings between two processes that are the producer of one and the consumer of the other, and
 *                   sleep for both at once (a tap's loop)
 *      FORWARDER    two rings in a row, and between them a process that sleeps for frames of the first, or, while it has
 *                   one and no room for it, for room in the second
 *      JOBS         two jobs in one loop: that forwarder, and one that takes the frames of a third ring and has room
 *                   for them. The loop sleeps for what each of them waits for: so for room in the second ring and for
 *                   frames of the third at once. Its neighbour fills the first and the third, and takes from the second.
 *      RESTARTS     one ring, and each end is killed once, after any store of its counter, and attaches anew
 *
 * A bell is a word that the ringer sets behind the counter it rings for (the lock of a pipe sees to that), and that who
 * slept on it clears. An atomic step is at most one load, and then what nobody else can see: private words, and stores
 * into the own buffer.
 */
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef LAST
#define LAST 5 /* slots that a producer publishes at the most; counters begin at 0 and do not wrap here */
#endif

#define HEAD(ring) (6 * (ring))
#define TAIL(ring) (6 * (ring) + 1)
#define WAKE_CONSUMER(ring) (6 * (ring) + 2)
#define WAKE_PRODUCER(ring) (6 * (ring) + 3)
#define CONSUMERS_BELL(ring) (6 * (ring) + 4)
#define PRODUCERS_BELL(ring) (6 * (ring) + 5)
#if defined(JOBS)
#define RINGS 3
#elif defined(DUPLEX) || defined(FORWARDER)
#define RINGS 2
#else
#define RINGS 1
#endif
#define WORDS (6 * RINGS)

#ifndef STORES
#define STORES 3
#endif
#ifdef FORWARDER
#define PROCESSES 3
#endif
#include "memory.pml"

/* What a half of a ring knows; nobody else looks at it, but for the claim. */
typedef Half {
    byte at;       /* head, or tail */
    byte peer;     /* the other counter, as last loaded */
    byte looked_at /* the other's wake word was looked at, after a fence, for steps up to here */
};
Half producer[RINGS];
Half consumer[RINGS];
bool stopped[RINGS]; /* its producer publishes nothing more */

#define ROOM(ring) (SLOTS - producer[ring].at + producer[ring].peer)
#define LEFT(ring) (LAST - producer[ring].at)
#define READY(ring) (consumer[ring].peer - consumer[ring].at)

#ifdef WAKES_AT_THE_VALUE_ONLY
#define STEP_WAKES(from, to, wake) ((from) != (to) && (wake) == (to))
#else
#define STEP_WAKES(from, to, wake) ((from) < (wake) && (wake) <= (to))
#endif
#ifdef SETTLE_WITHOUT_FENCE
#define SETTLE_MAY_LOOK(me) true
#else
#define SETTLE_MAY_LOOK(me) FENCED(me)
#endif
#ifdef SLEEPER_WITHOUT_FENCE
#define SLEEPER_MAY_LOOK(me) true
#else
#define SLEEPER_MAY_LOOK(me) FENCED(me)
#endif
#ifdef SLEEPER_LOOKS_NO_SECOND_TIME
#define WORK(there) false
#else
#define WORK(there) (there)
#endif

inline ring_bell(me, bell)
{
#ifdef BELL_OVERTAKES_THE_COUNTER
    word[bell] = 1
#else
    store(me, bell, 1, RELEASE)
#endif
}

/* Ring if the other sleeps for a step that was not looked at yet. */
inline look(me, half, wake_word, bell)
{
    wake = word[wake_word];
    if
    :: STEP_WAKES(half.looked_at, half.at, wake) ->
        half.looked_at = half.at;
        ring_bell(me, bell)
    :: else
    fi;
    wake = 0;
#ifdef MORE_COUNTS_AS_LOOKED_AT
    half.looked_at = half.at
#endif
}

inline settle(me, half, wake_word, bell)
{
    if
    :: half.looked_at == half.at
    :: atomic {
            half.looked_at != half.at && SETTLE_MAY_LOOK(me) ->
            look(me, half, wake_word, bell);
            half.looked_at = half.at
        }
    fi
}

inline settle_producer(me, ring)
{
    settle(me, producer[ring], WAKE_CONSUMER(ring), CONSUMERS_BELL(ring))
}

inline settle_consumer(me, ring)
{
    settle(me, consumer[ring], WAKE_PRODUCER(ring), PRODUCERS_BELL(ring))
}

#ifdef SLEEPS_UNSETTLED
#define BEFORE_SLEEPING(settling) skip
#else
#define BEFORE_SLEEPING(settling) settling
#endif

#ifdef RESTARTS
bool killed[2];

/* What it has stored arrives, and the next incarnation has looked at nothing. */
inline may_be_killed(me, half, bell)
{
    if
    :: d_step { !killed[me] && FENCED(me) -> killed[me] = true };
        half.looked_at = half.at;
#ifndef ATTACHES_IN_SILENCE
        ring_bell(me, bell)
#endif
    :: skip
    fi
}
#else
inline may_be_killed(me, half, bell)
{
    skip
}
#endif

/* With room for it; one slot or two. */
inline publish(me, ring)
{
    atomic {
        if
        :: producer[ring].at++
#if SLOTS > 1
        :: ROOM(ring) > 1 && LEFT(ring) > 1 -> producer[ring].at = producer[ring].at + 2
#endif
        fi;
        store(me, HEAD(ring), producer[ring].at, RELEASE)
    }
    may_be_killed(me, producer[ring], CONSUMERS_BELL(ring));
    if
    :: settle_producer(me, ring)
    :: atomic { look(me, producer[ring], WAKE_CONSUMER(ring), CONSUMERS_BELL(ring)) }
    fi
}

/* With something to release: one slot of it, or all. */
inline release(me, ring)
{
    atomic {
        if
        :: consumer[ring].at++
#if SLOTS > 1
        :: READY(ring) > 1 -> consumer[ring].at = consumer[ring].peer
#endif
        fi;
        store(me, TAIL(ring), consumer[ring].at, RELEASE)
    }
    may_be_killed(me, consumer[ring], PRODUCERS_BELL(ring));
    if
    :: settle_consumer(me, ring)
    :: atomic { look(me, consumer[ring], WAKE_PRODUCER(ring), PRODUCERS_BELL(ring)) }
    fi
}

/* Half of the ring is to be free: seldom the next step's value. */
#define WANTED(ring) (producer[ring].at - SLOTS / 2)
#define HAS_ROOM(ring) (word[TAIL(ring)] >= WANTED(ring))
#define HAS_FRAMES(ring) (word[HEAD(ring)] != consumer[ring].at)

#if !defined(DUPLEX) && !defined(JOBS)

proctype Producer()
{
    byte wake;
    do
    :: ROOM(0) > 0 && LEFT(0) > 0 -> publish(0, 0)
    :: d_step { ROOM(0) == 0 && word[TAIL(0)] != producer[0].peer -> producer[0].peer = word[TAIL(0)] }
    :: ROOM(0) == 0 && word[TAIL(0)] == producer[0].peer ->
        BEFORE_SLEEPING(settle_producer(0, 0));
        store(0, WAKE_PRODUCER(0), WANTED(0), RELAXED);
        if
        :: SLEEPER_MAY_LOOK(0) && WORK(HAS_ROOM(0))
        :: SLEEPER_MAY_LOOK(0) && !WORK(HAS_ROOM(0)) ->
            d_step { word[PRODUCERS_BELL(0)] == 1 -> word[PRODUCERS_BELL(0)] = 0 }
        fi
    :: BEFORE_SLEEPING(settle_producer(0, 0)); break
    od;
    stopped[0] = true
}

proctype Consumer(byte self; byte ring)
{
    byte wake;
    do
    :: READY(ring) > 0 -> release(self, ring)
    :: d_step { READY(ring) == 0 && word[HEAD(ring)] != consumer[ring].peer -> consumer[ring].peer = word[HEAD(ring)] }
    :: READY(ring) == 0 && word[HEAD(ring)] == consumer[ring].peer ->
        BEFORE_SLEEPING(settle_consumer(self, ring));
        store(self, WAKE_CONSUMER(ring), consumer[ring].at + 1, RELAXED);
        if
        :: SLEEPER_MAY_LOOK(self) && WORK(HAS_FRAMES(ring))
        :: SLEEPER_MAY_LOOK(self) && !WORK(HAS_FRAMES(ring)) ->
end:        d_step { word[CONSUMERS_BELL(ring)] == 1 -> word[CONSUMERS_BELL(ring)] = 0 }
        fi
    od
}

#endif

#ifdef DUPLEX

/* One turn: all that is there is consumed, then some is published; without work, sleep. */
proctype End(bit self)
{
    byte wake;
    bool held; /* the source is not looked at: no room */
    do
    :: READY(1 - self) > 0 -> release(self, 1 - self)
    :: d_step { READY(1 - self) == 0 && word[HEAD(1 - self)] != consumer[1 - self].peer ->
            consumer[1 - self].peer = word[HEAD(1 - self)] }
    :: d_step { ROOM(self) == 0 && word[TAIL(self)] != producer[self].peer -> producer[self].peer = word[TAIL(self)] }
    :: ROOM(self) > 0 && LEFT(self) > 0 && !stopped[self] -> publish(self, self)
    :: d_step { ROOM(self) > 0 && !stopped[self] -> stopped[self] = true }
    :: READY(1 - self) == 0 && word[HEAD(1 - self)] == consumer[1 - self].peer &&
        (stopped[self] || (ROOM(self) == 0 && word[TAIL(self)] == producer[self].peer)) ->
        held = !stopped[self];
        BEFORE_SLEEPING(settle_producer(self, self));
        BEFORE_SLEEPING(settle_consumer(self, 1 - self));
        store(self, WAKE_CONSUMER(1 - self), consumer[1 - self].at + 1, RELAXED);
        if
        :: held -> store(self, WAKE_PRODUCER(self), WANTED(self), RELAXED)
        :: else
        fi;
        if
        :: SLEEPER_MAY_LOOK(self) && WORK(HAS_FRAMES(1 - self) || (held && HAS_ROOM(self)))
        :: SLEEPER_MAY_LOOK(self) && !WORK(HAS_FRAMES(1 - self) || (held && HAS_ROOM(self))) ->
end:        do
            :: d_step { word[CONSUMERS_BELL(1 - self)] == 1 -> word[CONSUMERS_BELL(1 - self)] = 0 }; break
            :: d_step { held && word[PRODUCERS_BELL(self)] == 1 -> word[PRODUCERS_BELL(self)] = 0 }; break
            od
        fi;
        held = false
    od
}

#endif

#if defined(FORWARDER) || defined(JOBS)

/* One frame after the other: released in the first ring, then published in the second. */
inline forward(me)
{
    atomic {
        consumer[0].at++;
        store(me, TAIL(0), consumer[0].at, RELEASE)
    }
    if
    :: settle_consumer(me, 0)
    :: atomic { look(me, consumer[0], WAKE_PRODUCER(0), PRODUCERS_BELL(0)) }
    fi;
    atomic {
        producer[1].at++;
        store(me, HEAD(1), producer[1].at, RELEASE)
    }
    if
    :: settle_producer(me, 1)
    :: atomic { look(me, producer[1], WAKE_CONSUMER(1), CONSUMERS_BELL(1)) }
    fi
}

inline settle_both(me)
{
    settle_consumer(me, 0);
    settle_producer(me, 1)
}

#endif

#ifdef FORWARDER

proctype Forwarder()
{
    byte wake;
    do
    :: READY(0) > 0 && ROOM(1) > 0 -> forward(1)
    :: d_step { READY(0) == 0 && word[HEAD(0)] != consumer[0].peer -> consumer[0].peer = word[HEAD(0)] }
    :: d_step { ROOM(1) == 0 && word[TAIL(1)] != producer[1].peer -> producer[1].peer = word[TAIL(1)] }
    :: READY(0) == 0 && word[HEAD(0)] == consumer[0].peer ->
        BEFORE_SLEEPING(settle_both(1));
        store(1, WAKE_CONSUMER(0), consumer[0].at + 1, RELAXED);
        if
        :: SLEEPER_MAY_LOOK(1) && WORK(HAS_FRAMES(0))
        :: SLEEPER_MAY_LOOK(1) && !WORK(HAS_FRAMES(0)) ->
end:        d_step { word[CONSUMERS_BELL(0)] == 1 -> word[CONSUMERS_BELL(0)] = 0 }
        fi
    :: READY(0) > 0 && ROOM(1) == 0 && word[TAIL(1)] == producer[1].peer ->
        BEFORE_SLEEPING(settle_both(1));
        store(1, WAKE_PRODUCER(1), WANTED(1), RELAXED);
        if
        :: SLEEPER_MAY_LOOK(1) && WORK(HAS_ROOM(1))
        :: SLEEPER_MAY_LOOK(1) && !WORK(HAS_ROOM(1)) ->
            d_step { word[PRODUCERS_BELL(1)] == 1 -> word[PRODUCERS_BELL(1)] = 0 }
        fi
    od
}

#endif

#ifdef JOBS

/*
 * The third ring has room for all that is sent there, one slot, at any moment or never: producers whose ring is full are
 * searched with the first one, and in the other variants.
 */
proctype Neighbour()
{
    byte wake;
    bool held; /* no room in the first ring */
    do
    :: READY(1) > 0 -> release(0, 1)
    :: d_step { READY(1) == 0 && word[HEAD(1)] != consumer[1].peer -> consumer[1].peer = word[HEAD(1)] }
    :: d_step { ROOM(0) == 0 && word[TAIL(0)] != producer[0].peer -> producer[0].peer = word[TAIL(0)] }
    :: ROOM(0) > 0 && LEFT(0) > 0 && !stopped[0] -> publish(0, 0)
    :: d_step { ROOM(0) > 0 && !stopped[0] -> stopped[0] = true }
    :: producer[2].at == 0 -> publish(0, 2)
    :: READY(1) == 0 && word[HEAD(1)] == consumer[1].peer &&
        (stopped[0] || (ROOM(0) == 0 && word[TAIL(0)] == producer[0].peer)) ->
        held = !stopped[0];
        settle_producer(0, 0);
        settle_producer(0, 2);
        settle_consumer(0, 1);
        store(0, WAKE_CONSUMER(1), consumer[1].at + 1, RELAXED);
        if
        :: held -> store(0, WAKE_PRODUCER(0), WANTED(0), RELAXED)
        :: else
        fi;
        if
        :: SLEEPER_MAY_LOOK(0) && WORK(HAS_FRAMES(1) || (held && HAS_ROOM(0)))
        :: SLEEPER_MAY_LOOK(0) && !WORK(HAS_FRAMES(1) || (held && HAS_ROOM(0))) ->
end:        do
            :: d_step { word[CONSUMERS_BELL(1)] == 1 -> word[CONSUMERS_BELL(1)] = 0 }; break
            :: d_step { held && word[PRODUCERS_BELL(0)] == 1 -> word[PRODUCERS_BELL(0)] = 0 }; break
            od
        fi;
        held = false
    od
}

#ifdef ONE_JOB_IS_ARMED
#define ARM_SECOND skip
#else
#define ARM_SECOND store(1, WAKE_CONSUMER(2), consumer[2].at + 1, RELAXED)
#endif
#ifdef ONE_JOB_IS_LOOKED_AT_AGAIN
#define SECOND_HAS_WORK false
#else
#define SECOND_HAS_WORK HAS_FRAMES(2)
#endif
#define FIRST_WAITS_FOR_FRAMES (READY(0) == 0 && word[HEAD(0)] == consumer[0].peer)
#define FIRST_WAITS_FOR_ROOM (READY(0) > 0 && ROOM(1) == 0 && word[TAIL(1)] == producer[1].peer)
#define SECOND_WAITS (READY(2) == 0 && word[HEAD(2)] == consumer[2].peer)
#define LOOP_HAS_WORK ((held -> HAS_ROOM(1) : HAS_FRAMES(0)) || SECOND_HAS_WORK)

/* The jobs come to their turn in any order, and the loop sleeps when neither has work. */
proctype Loop()
{
    byte wake;
    bool held; /* the first job has a frame, and waits for room */
    do
    :: READY(0) > 0 && ROOM(1) > 0 -> forward(1)
    :: READY(2) > 0 -> release(1, 2)
    :: d_step { READY(0) == 0 && word[HEAD(0)] != consumer[0].peer -> consumer[0].peer = word[HEAD(0)] }
    :: d_step { ROOM(1) == 0 && word[TAIL(1)] != producer[1].peer -> producer[1].peer = word[TAIL(1)] }
    :: d_step { READY(2) == 0 && word[HEAD(2)] != consumer[2].peer -> consumer[2].peer = word[HEAD(2)] }
    :: (FIRST_WAITS_FOR_FRAMES || FIRST_WAITS_FOR_ROOM) && SECOND_WAITS ->
        held = READY(0) > 0;
        BEFORE_SLEEPING(settle_both(1));
        BEFORE_SLEEPING(settle_consumer(1, 2));
        if
        :: held -> store(1, WAKE_PRODUCER(1), WANTED(1), RELAXED)
        :: else -> store(1, WAKE_CONSUMER(0), consumer[0].at + 1, RELAXED)
        fi;
        ARM_SECOND;
        if
        :: SLEEPER_MAY_LOOK(1) && WORK(LOOP_HAS_WORK)
        :: SLEEPER_MAY_LOOK(1) && !WORK(LOOP_HAS_WORK) ->
end:        do
            :: d_step { held && word[PRODUCERS_BELL(1)] == 1 -> word[PRODUCERS_BELL(1)] = 0 }; break
            :: d_step { !held && word[CONSUMERS_BELL(0)] == 1 -> word[CONSUMERS_BELL(0)] = 0 }; break
            :: d_step { word[CONSUMERS_BELL(2)] == 1 -> word[CONSUMERS_BELL(2)] = 0 }; break
            od
        fi;
        held = false
    od
}

#endif

#if defined(DUPLEX)
#define AT_REST (stopped[0] && stopped[1] && consumer[0].at == producer[0].at && consumer[1].at == producer[1].at)
#elif defined(FORWARDER)
#define AT_REST (stopped[0] && consumer[0].at == producer[0].at && consumer[1].at == producer[0].at)
#elif defined(JOBS)
#define AT_REST \
    (stopped[0] && consumer[0].at == producer[0].at && consumer[1].at == producer[0].at && \
     consumer[2].at == producer[2].at)
#else
#define AT_REST (stopped[0] && consumer[0].at == producer[0].at)
#endif

init
{
    atomic {
        run Memory(0);
        run Memory(1);
#ifdef DUPLEX
        run End(0);
        run End(1)
#elif defined(JOBS)
        run Neighbour();
        run Loop()
#elif defined(FORWARDER)
        run Memory(2);
        run Producer();
        run Forwarder();
        run Consumer(2, 1)
#else
        run Producer();
        run Consumer(1, 0)
#endif
    }
    timeout;
    assert(AT_REST)
}
