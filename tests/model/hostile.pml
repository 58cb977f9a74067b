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
#define COUNTERS 16
#define MODULO(counter) ((counter) & (COUNTERS - 1))
#define SIGNED_PASSES(a, b) (MODULO((a) - (b)) != 0 && MODULO((a) - (b)) < COUNTERS / 2)
#define BURST 2
#define FRAME_MAX 2

/* Kinds of descriptor; any other is none. */
#define FRAME 1
#define CONTINUATION 2
#define MARK 3
#define KINDS 5

typedef Desc {
    byte kind;
    byte slots;
    byte len
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
