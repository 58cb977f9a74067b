/* The functions of bench/ that Python calls. Read unchanged by C and by cffi; declarations only. */

/*
 * Fill, or check, frames of board->len bytes at full speed until board->stop. The arguments are a
 * struct rway_producer and a struct rway_consumer, for the time of the call.
 */
void bench_link_produce(void *producer, struct bench_board *board);
void bench_link_consume(void *consumer, struct bench_board *board);

/* The same over a struct bare_ring in zeroed shared memory of bench_bare_size() bytes. */
uint64_t bench_bare_size(void);
void bench_bare_produce(void *ring, struct bench_board *board);
void bench_bare_consume(void *ring, struct bench_board *board);

/* Nanoseconds that a cache line takes from cpu_a to cpu_b and back; the median of several samples. -1: no thread. */
double bench_core_distance(int cpu_a, int cpu_b);
