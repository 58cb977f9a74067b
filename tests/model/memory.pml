/*
 * Shared memory as the models see it: words, and stores that are still on their way to them.
 *
 * A process does not store into a word; it hands the store to its buffer, from which it leaves some time later. Loads
 * are done at once, from the words. Nobody loads what he stores himself, so no buffer is searched. Which store may
 * leave next is the memory's order:
 *
 *      TSO (x86)    the oldest
 *      WEAK         any that no older one to the same word goes before; a release only as the oldest of all
 *
 * A full buffer holds its process up, so executions in which more than STORES of them are under way are not searched.
 * An acquire needs no words here, as loads are not done early: what leaving it out would allow is written out by the
 * mutants that leave it out.
 */
byte word[WORDS];

typedef Buffer {
    byte count;
    byte to[STORES];
    byte value[STORES];
    bool ordered[STORES]
};
#ifndef PROCESSES
#define PROCESSES 2
#endif
Buffer buffer[PROCESSES];

#define RELAXED false
#define RELEASE true

inline store(who, where, what, order)
{
    d_step {
        buffer[who].count < STORES;
        buffer[who].to[buffer[who].count] = where;
        buffer[who].value[buffer[who].count] = what;
        buffer[who].ordered[buffer[who].count] = order;
        buffer[who].count++
    }
}

/* Behind a full fence: all stores have arrived. */
#define FENCED(who) (buffer[who].count == 0)

/* The store at a place of the buffer arrives. What is not used is zero, so that equal states look equal. */
inline arrive(who, place)
{
    word[buffer[who].to[place]] = buffer[who].value[place];
    buffer[who].count--;
    at = place;
    do
    :: at < buffer[who].count ->
        buffer[who].to[at] = buffer[who].to[at + 1];
        buffer[who].value[at] = buffer[who].value[at + 1];
        buffer[who].ordered[at] = buffer[who].ordered[at + 1];
        at++
    :: else -> break
    od;
    buffer[who].to[at] = 0;
    buffer[who].value[at] = 0;
    buffer[who].ordered[at] = false;
    at = 0
}

#define OVERTAKES(who, place, older) \
    (!buffer[who].ordered[place] && buffer[who].to[place] != buffer[who].to[older])

proctype Memory(byte who)
{
    byte at;
end:
    do
    :: d_step { buffer[who].count > 0 -> arrive(who, 0) }
#ifdef WEAK
    :: d_step { buffer[who].count > 1 && OVERTAKES(who, 1, 0) -> arrive(who, 1) }
#if STORES > 2
    :: d_step { buffer[who].count > 2 && OVERTAKES(who, 2, 0) && OVERTAKES(who, 2, 1) -> arrive(who, 2) }
#endif
#if STORES > 3
    :: d_step {
            buffer[who].count > 3 && OVERTAKES(who, 3, 0) && OVERTAKES(who, 3, 1) && OVERTAKES(who, 3, 2) ->
            arrive(who, 3)
        }
#endif
#if STORES > 4
    :: d_step {
            buffer[who].count > 4 && OVERTAKES(who, 4, 0) && OVERTAKES(who, 4, 1) && OVERTAKES(who, 4, 2) &&
                OVERTAKES(who, 4, 3) ->
            arrive(who, 4)
        }
#endif
#endif
    od
}
