/*
 * A worker's board: what it has done so far, for the bench to read at any moment, and what it is asked to do.
 * It lies in a file that both map. Read unchanged by C and by cffi; declarations only.
 */
struct bench_board {
    uint64_t frames; /* delivered and checked; writer: the worker */
    uint64_t bytes;
    uint64_t bad;      /* frames whose content or order was wrong */
    uint64_t turns;    /* of the worker's loop, idle ones included */
    uint64_t rtt_count; /* round trips measured since the last reset */
    uint64_t pad0[3];
    uint64_t len;  /* bytes per frame; writer: the bench */
    uint64_t stop; /* not 0: end */
    uint64_t pad1[6];
};
