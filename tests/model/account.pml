/*
 * The account that a half of a ring keeps in shared memory, and how the next incarnation finds it ("Restarts" in
 * shm/layout.h, shm/resume.c). A killed process leaves its stores in the order of its program, so here each store
 * takes effect at once, and a kill may come before any of them.
 */
typedef Commit {
    byte at;
    byte frames;
    byte dropped;
    byte replicated
};

/* One half's words: its counter, its two commits, and its drops by cause (all but restart's are one cause here). */
typedef Account {
    byte at; /* head, or tail */
    Commit commit[2];
    byte drops;
    byte restart
};

/* The same as its owner knows it, in private memory; gone with a kill. */
typedef Private {
    byte at;
    byte frames;
    byte drops;
    byte restart;
    byte replicated;
    bit next; /* the commit to be filled next */
    bool dirty
};

byte kills = KILLS; /* that may still happen */

/* What a process does next, or it is killed before. */
#define STEP(action) \
    if \
    :: d_step { action } \
    :: d_step { kills > 0 -> kills-- }; goto killed \
    fi

#define DROPPED(half) (half.drops + half.restart)

/* What it has replicated, less what it has consumed, where that has changed: in the real thing beside the commit. */
inline store_replicated(shared, own)
{
    if
    :: shared.commit[own.next].replicated != own.replicated ->
        STEP(shared.commit[own.next].replicated = own.replicated)
    :: else
    fi
}

inline store_commit(shared, own)
{
#ifndef REPLICATED_AFTER_THE_COUNTER
    store_replicated(shared, own);
#endif
    STEP(shared.commit[own.next].frames = own.frames);
    STEP(shared.commit[own.next].dropped = DROPPED(own));
    STEP(shared.commit[own.next].at = own.at);
#ifndef COMMIT_IN_ONE_COPY
    own.next = 1 - own.next
#endif
}

inline store_drops(shared, own)
{
    if
    :: own.dirty ->
        STEP(shared.drops = own.drops);
        STEP(shared.restart = own.restart);
        own.dirty = false
    :: else
    fi
}

/* The counter moves to where own has it, and the drops behind it; seen is what else is true from the counter's on. */
#if defined(COUNTER_BEFORE_COMMIT)
#define STORE_ACCOUNT(shared, own, seen) \
    STEP(shared.at = own.at; seen); \
    store_commit(shared, own); \
    store_drops(shared, own)
#elif defined(DROPS_BEFORE_COUNTER)
#define STORE_ACCOUNT(shared, own, seen) \
    store_drops(shared, own); \
    store_commit(shared, own); \
    STEP(shared.at = own.at; seen)
#else
#define STORE_ACCOUNT(shared, own, seen) \
    store_commit(shared, own); \
    STEP(shared.at = own.at; seen); \
    store_replicated_late(shared, own); \
    store_drops(shared, own)
#endif

#ifdef REPLICATED_AFTER_THE_COUNTER
#define store_replicated_late(shared, own) STEP(shared.commit[1 - own.next].replicated = own.replicated)
#else
#define store_replicated_late(shared, own) skip
#endif

#define FOUND(shared) (shared.commit[0].at == shared.at -> 0 : 1)
#ifdef RESUMED_IN_THE_LIVE_COPY
#define NEXT(found) (found)
#else
#define NEXT(found) (1 - (found))
#endif

/* One of the commits is always the counter's. */
inline resume(shared, own)
{
    d_step {
        own.at = shared.at;
        own.next = FOUND(shared);
        assert(shared.commit[own.next].at == own.at);
        own.frames = shared.commit[own.next].frames;
        own.replicated = shared.commit[own.next].replicated;
        own.drops = shared.drops;
        own.restart = shared.restart;
        if
        :: shared.commit[own.next].dropped > DROPPED(own) ->
            own.restart = own.restart + shared.commit[own.next].dropped - DROPPED(own)
        :: else
        fi;
        own.next = NEXT(own.next);
        own.dirty = true
    }
}

inline forget(own)
{
    own.at = 0;
    own.frames = 0;
    own.drops = 0;
    own.replicated = 0;
    own.restart = 0;
    own.next = 0;
    own.dirty = false
}
