/*
 * A worker's board: what it has done so far, for the bench to read at any moment, and what it is asked to do.
 * It lies in a file that both map. Read unchanged by C and by cffi; declarations only.
 */
struct bench_board {
    uint64_t frames; /* delivered and checked; writer: the worker */
    uint64_t bytes;
    uint64_t bad;   /* frames whose content or order was wrong */
    uint64_t turns; /* of the worker's loop, idle ones included */
    uint64_t pad0[4];
    uint64_t len;       /* bytes per frame; writer: the bench */
    uint64_t stop;      /* not 0: end */
    uint64_t flows;     /* a power of two: of so many flows, scattered */
    uint64_t gap_us;    /* between two pings; 0: none */
    uint64_t touched;   /* bytes of each frame that a hop's ends write and compare, at least 64; 0: all */
    uint64_t under_way; /* frames that a hop's ends leave under way at most; 0: so few that no ring is ever full */
    uint64_t pad1[2];
};

enum { BENCH_SAMPLES = 1 << 18 };

/* Round trips, the newest over the oldest; writer: the worker that pings. */
struct bench_samples {
    uint64_t count; /* so far */
    uint64_t pad[7];
    uint32_t ns[262144]; /* BENCH_SAMPLES */
};
