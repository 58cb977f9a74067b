/* The ends of `bench race`, called from Python. Read unchanged by C and by cffi; declarations only. */

/* One end's counts, in memory that the bench reads. Writer: that end. */
struct race_books {
    uint64_t sent;       /* datagrams, or calls of a stream, handed to the chain */
    uint64_t delivered;  /* datagrams that came whole, each counted once */
    uint64_t bytes;      /* payload of those; of a stream, all that came */
    uint64_t lost;       /* numbers passed over and not come yet */
    uint64_t reordered;  /* delivered after a later one */
    uint64_t duplicated; /* came twice, or too late to tell */
    uint64_t damaged;    /* not what was sent */
};

/*
 * Each goes on until its process is ended, and returns -errno when it cannot go on. len: bytes of payload, 18 to 1472.
 * producer, consumer and region are the library's structs of these names; the sockets are connected and blocking.
 * All stay the caller's.
 */
int bench_race_ring_send(void *producer, uint32_t len, struct race_books *books);
int bench_race_ring_receive(void *consumer, void *region, uint32_t len, struct race_books *books);
int bench_race_socket_send(int fd, uint32_t len, struct race_books *books);
int bench_race_socket_receive(int fd, struct race_books *books);
int bench_race_stream_send(int fd, struct race_books *books);
int bench_race_stream_receive(int fd, struct race_books *books);
