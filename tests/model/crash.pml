/*
 * A link whose ends are killed between any two stores and attach anew, and are killed during the attach: a producer, and
 * a consumer that hands frames on one by one before it releases them (a tap, agent/tap.c).
 *
 * Claims: each attach finds the counts that belong to the counter it finds; no frame is handed on twice, or after a
 * later one; and at rest the books say what happened: published = delivered + dropped, where of each killed consumer's
 * frames one at the most counts as restart, the one it had begun.
 */
#ifndef LAST
#define LAST 3 /* frames that the producer's source has */
#endif
#ifndef KILLS
#define KILLS 3
#endif
#define SLOTS 2
#define BURST 2

#include "account.pml"

Account published;
Account released;
byte begun;
byte slot[SLOTS];

#define SLOT(counter) slot[(counter) % SLOTS]

/* What happened, known to nobody who is in it. */
byte taken;        /* frames that the source has given out, whatever became of them */
byte dropped_in;   /* frames that a producer dropped */
byte committed_in; /* of those, how many went with a head that everybody saw */
byte handed_on, last_handed_on;
byte doubted; /* frames that were handed on by a consumer that was killed then, and count as restart */
byte consumer_kills;
bool finished;

proctype Producer()
{
    Private own;
    byte claimed;
again:
    resume(published, own);
    assert(own.frames == own.at);
    assert(DROPPED(own) >= committed_in && DROPPED(own) <= dropped_in);
    store_drops(published, own);
    do
    :: taken < LAST && claimed < BURST && own.at + claimed - released.at < SLOTS ->
        atomic {
            taken++;
            if
            :: SLOT(own.at + claimed) = taken; claimed++
            :: own.drops++; dropped_in++; own.dirty = true
            fi
        }
    :: claimed > 0 ->
        d_step { own.at = own.at + claimed; own.frames = own.at; claimed = 0 };
        STORE_ACCOUNT(published, own, committed_in = DROPPED(own))
    :: claimed == 0 && own.dirty -> store_drops(published, own)
    :: taken == LAST && claimed == 0 && !own.dirty -> break
    od;
    finished = true;
    goto done;
killed:
    atomic { forget(own); claimed = 0 };
    goto again;
done:
    skip
}

inline begin(position)
{
#ifndef BEGUN_IS_NOT_STORED
    STEP(begun = position)
#else
    skip
#endif
}

inline hand_on()
{
    if
    :: d_step {
            assert(SLOT(cursor) > last_handed_on);
            last_handed_on = SLOT(cursor);
            handed_on++
        }
    :: d_step { own.drops++; own.dirty = true; refusing = true }
    :: d_step { kills > 0 -> kills-- }; goto killed
    fi
}

/* The slots between cursor and the end of the burst, up to one that is refused. */
inline hand_burst_on()
{
    do
    :: cursor == last || refusing -> break
    :: cursor != last && !refusing ->
#ifdef BEGUN_AFTER_HANDING_ON
        hand_on();
        begin(cursor + 1);
#else
        begin(cursor + 1);
        hand_on();
#endif
        cursor++;
#ifdef REFUSED_IS_NOT_THE_LAST
        refusing = false
#endif
    od;
    refusing = false
}

/* Frames that the one before had begun are its: all but the last were handed on. */
inline take_begun()
{
    if
    :: begun > own.at && begun <= published.at ->
        d_step {
            own.at = begun;
            own.frames = begun;
            own.restart++;
            own.dirty = true
        }
        STORE_ACCOUNT(released, own, doubted = doubted + (last_handed_on == SLOT(begun - 1)))
    :: else
    fi
}

proctype Consumer()
{
    Private own;
    byte cursor, last;
    bool refusing;
again:
    resume(released, own);
    assert(own.frames == own.at);
    take_begun();
    cursor = own.at;
    store_drops(released, own);
    assert(own.restart <= consumer_kills);
    do
    :: published.at != own.at ->
        last = (published.at - own.at < BURST -> published.at : own.at + BURST);
        hand_burst_on();
        d_step { own.at = cursor; own.frames = cursor; last = 0 };
        STORE_ACCOUNT(released, own, skip)
    :: finished && published.at == own.at -> break
    od;
    assert(own.frames == published.at);
    assert(handed_on == own.frames - DROPPED(own) + doubted);
    goto done;
killed:
    atomic { forget(own); cursor = 0; last = 0; refusing = false; consumer_kills++ };
    goto again;
done:
    skip
}

init
{
    atomic {
        run Producer();
        run Consumer()
    }
}
