/* The public functions of agent/: a kernel interface as a port. Read unchanged by C and by cffi; declarations only. */

/*
 * Move frames between a tap queue and a link's queue. tap_fd is non-blocking, opened with IFF_VNET_HDR and a header
 * of 10 bytes (struct virtio_net_hdr without num_buffers); it stays the caller's and must outlive the job. frame_max
 * is the longest frame the interface can hand over, at most the link's own. NULL without memory.
 *
 * A full ring makes the job stop reading the tap: the kernel then queues and slows its sockets down. Frames that the
 * kernel refuses are dropped as RWAY_DROP_SINK.
 */
struct rway_job *rway_tap_new(int tap_fd, struct rway_producer *producer, struct rway_consumer *consumer,
                              uint32_t frame_max);

/*
 * With drop other than 0 the tap is read when the ring is full too, and as long as it has no room for the longest frame
 * all are dropped as RWAY_DROP_FULL: the length of the next one is not known before. Any thread, while the job's loop
 * exists.
 */
void rway_tap_set_full(struct rway_job *job, int drop);

/* Was the interface deleted? Then the job does nothing any more. Any thread, while the job's loop exists. */
int rway_tap_gone(const struct rway_job *job);

/* errno of the last attempt to read the tap, when it failed for no reason that is expected; else 0. As above. */
int rway_tap_error(const struct rway_job *job);
