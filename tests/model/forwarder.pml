/*
 * A forwarder between two links that is killed between any two stores, also while it attaches and begins (stack/forward.c,
 * shm/losses.c). The ends before and behind it are not killed here: each half of a ring has its own words, and
 * crash.pml kills them.
 *
 * Claims: no frame comes out twice, or after a later one; whenever the forwarder is at rest its lead is the one that was
 * noted, so that the books balance over both links by the frame; and a kill loses a burst at the most.
 */
#ifndef LAST
#define LAST 4 /* frames; their number is their position and one */
#endif
#ifndef KILLS
#define KILLS 3
#endif
#define SLOTS 2
#define BURST 2
#define CARRIED 1 /* frames that the input's consumer took before there was a forwarder */

#include "account.pml"

byte in_head;
Account released; /* of the input */
Account published; /* of the output */
byte out_tail;
byte out_slot[SLOTS];
bool joined;
byte joined_lead;

byte came_out, last_out; /* how many, and the number of the last one */
byte deaths;

proctype Before()
{
    do
    :: d_step { in_head < LAST && in_head - released.at < SLOTS -> in_head++ }
    :: in_head == LAST -> break
    od
}

proctype Behind()
{
end:
    do
    :: d_step {
            published.at != out_tail ->
            assert(out_slot[out_tail % SLOTS] > last_out);
            last_out = out_slot[out_tail % SLOTS];
            came_out++;
            out_tail++
        }
    od
}

/* A byte, as the sums of the real thing are 64 bits: below 0 when more was consumed than passed. */
#define LEAD ((in.frames - DROPPED(in) + in.replicated - out.frames - DROPPED(out)) & 255)

inline note_lead()
{
#ifdef JOINED_BEFORE_LEAD
    STEP(joined = true);
    STEP(joined_lead = LEAD)
#else
    STEP(joined = false);
    STEP(joined_lead = LEAD);
    STEP(joined = true)
#endif
}

/* What the lead has grown by was lost, and is booked; then the lead is again the one that was noted. */
inline join()
{
    if
    :: !joined -> note_lead()
    :: joined ->
#ifdef LOST_IS_NOT_BOOKED
        note_lead()
#else
        lost = (LEAD - joined_lead) & 255;
        assert(lost <= BURST);
        d_step { out.restart = out.restart + lost; out.dirty = lost > 0; lost = 0 };
        store_drops(published, out)
#endif
    fi
}

/*
 * Judge each frame of the burst, and copy those that pass into free slots of the output. Nobody sees any of it yet. What
 * has no room is left in the input, or, once its consumer has stood still for too long, dropped.
 */
inline pass_through()
{
    do
    :: burst > 0 ->
        atomic {
            burst--;
            in.at++;
            in.frames++;
            if
            :: in.drops++; in.dirty = true /* the filter's verdict */
            :: in.replicated-- /* consumed: an answer was made of it, say */
            :: out.at - out_tail < SLOTS ->
                out_slot[out.at % SLOTS] = in.at;
                out.at++;
                out.frames++
            :: out.at - out_tail == SLOTS -> out.drops++; out.dirty = true
            fi
        }
    :: d_step {
            burst > 0 && out.at - out_tail == SLOTS ->
#ifdef WAITING_IS_RELEASED
            in.at = in.at + burst;
            in.frames = in.frames + burst;
#endif
            burst = 0
        }
    :: burst == 0 -> break
    od
}

inline release()
{
    if
    :: in.at != released.at -> STORE_ACCOUNT(released, in, skip)
    :: in.at == released.at
    fi
}

inline publish()
{
    if
    :: out.at != published.at -> STORE_ACCOUNT(published, out, skip)
    :: out.at == published.at -> store_drops(published, out)
    fi
}

proctype Forwarder()
{
    Private in, out;
    byte burst, lost;
again:
    resume(released, in);
    assert(in.frames == in.at + CARRIED);
    store_drops(released, in);
    resume(published, out);
    store_drops(published, out);
    join();
    do
    :: in_head != in.at ->
        burst = (in_head - in.at < BURST -> in_head - in.at : BURST);
        pass_through();
#ifdef PUBLISHED_BEFORE_RELEASED
        publish();
#endif
        release();
#ifndef PUBLISHED_BEFORE_RELEASED
        publish();
#endif
        assert(LEAD == joined_lead)
    :: in.at == LAST -> break
    od;
    out_tail == published.at;
    assert(came_out == out.frames);
    assert(((came_out + DROPPED(in) + DROPPED(out) - in.replicated) & 255) == in.frames - CARRIED);
    assert(in.restart + out.restart <= BURST * deaths);
    goto done;
killed:
    atomic { forget(in); forget(out); burst = 0; lost = 0; deaths++ };
    goto again;
done:
    skip
}

init
{
    atomic {
        released.commit[0].frames = CARRIED;
        run Before();
        run Forwarder();
        run Behind()
    }
}
