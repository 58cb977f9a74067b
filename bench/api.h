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

/*
 * Send frames of board->len bytes (at least 64, in one slot) out of one port and compare what comes back at another,
 * until board->stop: a struct rway_producer and a struct rway_consumer.
 */
void bench_hop(void *out, void *in, struct bench_board *board);

/*
 * The same over two struct bare_ring, there and back, in zeroed shared memory of bench_bare_hop_size() bytes; and the
 * forwarder between them, which copies each frame once and does nothing besides.
 */
uint64_t bench_bare_hop_size(void);
void bench_bare_hop_ends(void *rings, struct bench_board *board);
void bench_bare_hop_forward(void *rings, struct bench_board *board);

/* Round trips of one frame of 64 bytes over a link, until board->stop; polling, or sleeping while there is nothing. */
void bench_ping(void *out, void *in, int sleeping, struct bench_board *board, struct bench_samples *samples);
void bench_pong(void *out, void *in, int sleeping, struct bench_board *board);

/* The same by write and read, which block: over pipes, or datagram sockets. pong ends when the other end is closed. */
void bench_kernel_ping(int out_fd, int in_fd, struct bench_board *board, struct bench_samples *samples);
void bench_kernel_pong(int out_fd, int in_fd, struct bench_board *board);

/* Note a round trip; for workers in Python. */
void bench_sample(struct bench_samples *samples, uint64_t ns);

/* Nanoseconds that a cache line takes from cpu_a to cpu_b and back; the median of several samples. -1: no thread. */
double bench_core_distance(int cpu_a, int cpu_b);

/*
 * Nanoseconds to parse and judge a frame of one of so many open TCP connections, in random order and bursts of 32, by
 * a filter that has room for connections of them. Median over windows; -1 when something failed.
 */
double bench_flow_ns(uint32_t connections, uint32_t flows);

/*
 * Nanoseconds of processor time that a struct rway_function takes for a packet, in bursts of 32, with a state that its
 * start has made; NULL: for what the bench does besides. -1 when something failed.
 */
double bench_function_ns(const void *function, void *state);
