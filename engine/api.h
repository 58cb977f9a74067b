/*
 * The public functions of engine/: a thread that runs jobs. Read unchanged by C and by cffi; declarations only.
 *
 * This is the interface for everything that runs in a loop: a tap, a forwarder, the pump of a guest, a customer's own
 * job. A job is a struct rway_job at the start of a structure of one's own; engine/job.h says what it has to keep to.
 */

/* Something that moves frames. Owned by the loop from rway_loop_add on; all three functions are there. */
struct rway_job {
    /* Move what is there, at most RWAY_BURST frames in each direction. Returns how many frames it dealt with. */
    uint32_t (*run)(struct rway_job *job);
    /* Say what to wait for before the loop sleeps: rway_waiter_add_… (shm/api.h). */
    void (*arm)(struct rway_job *job, struct rway_waiter *waiter);
    /* The loop has ended, or was never started. */
    void (*free)(struct rway_job *job);
};

/*
 * Something that a loop's jobs have in common: tables that are swapped under way, time. Owned by the loop from
 * rway_loop_hook on; a function that is NULL is left out.
 */
struct rway_hook {
    /* At the top of each turn, before the first job: from here on the jobs may use what it holds. */
    void (*turn)(struct rway_hook *hook);
    /* Before the loop sleeps, and when its thread ends: let go of what others may wait for. A turn comes next. */
    void (*rest)(struct rway_hook *hook);
    /* After all jobs are freed. */
    void (*free)(struct rway_hook *hook);
};

struct rway_loop;

/*
 * spin_us: microseconds without work before it sleeps; a loop that has to share its processor sleeps at once. NULL
 * without memory or descriptors.
 */
struct rway_loop *rway_loop_new(uint32_t spin_us);

/*
 * Before the start, each 0 or -1: add a job; add a hook, called in the order in which they were added. On -1 the job or
 * hook stays the caller's.
 */
int rway_loop_add(struct rway_loop *loop, struct rway_job *job);
int rway_loop_hook(struct rway_loop *loop, struct rway_hook *hook);

int rway_loop_start(struct rway_loop *loop);

/* Ask the thread to end and wait until it has; it ends between two turns, holding nothing. */
void rway_loop_stop(struct rway_loop *loop);

/* Stop the loop and free it with its jobs, then its hooks. */
void rway_loop_free(struct rway_loop *loop);

struct rway_loop_counts {
    uint64_t iterations;
    uint64_t sleeps;
    uint64_t frames; /* dealt with, dropped ones included */
};

/* Any thread. */
void rway_loop_read(const struct rway_loop *loop, struct rway_loop_counts *counts);
