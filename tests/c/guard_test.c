/*
 * Memory that vanishes under an attached region breaks that region and nothing else: every call that touches a
 * shortened carrier, holes punched into a live one, and system calls that meet it.
 */
#define _GNU_SOURCE
#include "guarded_link.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <errno.h>
#include <sys/uio.h>

/* ---- every call that touches the memory ---- */

static void touch_claim(struct rway_region *region)
{
    send_frames(region, 1, 60);
}

static void touch_publish(struct rway_region *region)
{
    struct rway_frame frame = {.len = 60, .hash = 1};
    rway_ring_claim(rway_region_producer(region, 0), &frame, 1);
    rway_ring_publish(rway_region_producer(region, 0), &frame, 1);
}

static void touch_offload(struct rway_region *region)
{
    struct rway_frame frame = {.len = 100};
    const struct rway_offload offload = {.flags = RWAY_EXT_CSUM, .csum_start = 34, .csum_offset = 6};
    rway_ring_claim(rway_region_producer(region, 0), &frame, 1);
    rway_frame_set_offload(rway_region_producer(region, 0), &frame, &offload);
}

static void touch_room(struct rway_region *region)
{
    rway_producer_room(rway_region_producer(region, 0));
}

static void touch_peek(struct rway_region *region)
{
    struct rway_frame frame;
    rway_ring_peek(rway_region_consumer(region, 0), &frame, 1);
}

static void touch_copy_out(struct rway_region *region)
{
    receive_frames(region);
}

static void touch_copy_in(struct rway_region *region)
{
    static const uint8_t bytes[100];
    const uint32_t len = 100;
    rway_frames_copy_in(rway_region_producer(region, 0), bytes, &len, 1);
}

static void touch_peer(struct rway_region *region)
{
    struct rway_side peer;
    rway_region_peer(region, &peer);
    CHECK(peer.state == RWAY_SIDE_DETACHED, "a word of the peer from nowhere");
}

static void touch_serve(struct rway_region *region)
{
    rway_region_serve(region, 1);
}

static void touch_sleep(struct rway_region *region)
{
    struct rway_waiter *waiter = rway_waiter_new();
    rway_waiter_add_consumer(waiter, rway_region_consumer(region, 0));
    rway_waiter_add_producer(waiter, rway_region_producer(region, 0), 1);
    rway_waiter_wait(waiter, 100);
    rway_waiter_free(waiter);
}

static void touch_break(struct rway_region *region)
{
    rway_region_break(region, RWAY_BROKEN_VANISHED);
}

static void check_shortened(void (*touch)(struct rway_region *), off_t left)
{
    struct link good = make_link(true);
    struct link link = make_link(false);
    send_frames(link.b, 3, 3000);
    CHECK(ftruncate(link.fd, left) == 0, "truncate");
    touch(link.a);
    CHECK(rway_region_broken(link.a) == RWAY_BROKEN_VANISHED, "broken is %d", rway_region_broken(link.a));
    /* It is over, and stays over: nothing more comes in or goes out, and nothing faults. */
    CHECK(receive_frames(link.a) == 0, "frames from nowhere");
    touch(link.a);
    touch_claim(link.a);
    touch_sleep(link.a);
    works(&good);
    touch_peek(link.b);
    touch_copy_in(link.b);
    CHECK(rway_region_broken(link.b) == RWAY_BROKEN_VANISHED, "broken is %d", rway_region_broken(link.b));
    detach(&link);
    works(&good);
    detach(&good);
}

static void shortened_memory_breaks_its_region_alone(void)
{
    static void (*const TOUCHES[])(struct rway_region *) = {touch_claim, touch_publish, touch_offload,  touch_room,
                                                            touch_peek,  touch_copy_in, touch_copy_out, touch_peer,
                                                            touch_serve, touch_sleep,   touch_break};
    for (size_t i = 0; i < sizeof TOUCHES / sizeof *TOUCHES; i++)
        check_shortened(TOUCHES[i], 0);
    /* Header and sides left, rings gone. */
    check_shortened(touch_peek, RWAY_RINGS_ALIGN);
    check_shortened(touch_claim, RWAY_RINGS_ALIGN);
    check_shortened(touch_sleep, RWAY_RINGS_ALIGN);
}

static void shortened_in_the_middle_of_a_frame(void)
{
    struct link link = make_link(false);
    struct rway_frame frame;
    struct rway_piece pieces[RWAY_PIECES_MAX];
    uint64_t sum = 0;
    send_frames(link.b, 1, 60000);
    CHECK(rway_ring_peek(rway_region_consumer(link.a, 0), &frame, 1) == 1, "peek");
    CHECK(ftruncate(link.fd, 0) == 0, "truncate");
    uint32_t count = rway_consumer_pieces(rway_region_consumer(link.a, 0), &frame, pieces);
    for (uint32_t i = 0; i < count; i++)
        for (size_t k = 0; k < pieces[i].len; k++)
            sum += ((volatile uint8_t *)pieces[i].data)[k];
    CHECK(sum == 0, "bytes from nowhere");
    rway_ring_release(rway_region_consumer(link.a, 0));
    CHECK(rway_region_broken(link.a) == RWAY_BROKEN_VANISHED, "not noticed");
    detach(&link);
}

static void attaching_to_shortened_memory_is_refused(void)
{
    struct rway_error error = {0};
    struct link link = make_link(false);
    uint64_t size = rway_region_shape(link.a)->region_size;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, link.fd, 0);
    CHECK(ftruncate(link.fd, HEAD_SIZE) == 0, "truncate");
    CHECK(rway_region_attach(link.fd, &GEOMETRY, LINK, RWAY_SIDE_A, 1, &error) == NULL, "attached");
    CHECK(error.cause == RWAY_REFUSED_SIZE && error.found == HEAD_SIZE, "cause %d", error.cause);
    /* Shortened between the look at its size and the mapping: the header is there, the rings are not. */
    CHECK(rway_region_over(memory, size, &GEOMETRY, LINK, RWAY_SIDE_A, 1, &error) == NULL, "attached");
    CHECK(error.cause == RWAY_REFUSED_SIZE, "cause %d", error.cause);
    CHECK(munmap(memory, size) == 0, "unmap");
    detach(&link);
}

/* ---- system calls ---- */

static void system_calls_find_the_memory_gone(void)
{
    struct link good = make_link(true);
    struct link link = make_link(false);
    struct rway_frame in, out = {.len = 6000};
    struct rway_piece pieces[RWAY_PIECES_MAX];
    int ends[2];
    CHECK(pipe2(ends, O_NONBLOCK) == 0 && write(ends[1], "bytes", 5) == 5, "pipe");
    send_frames(link.b, 1, 6000);
    CHECK(rway_ring_peek(rway_region_consumer(link.a, 0), &in, 1) == 1, "peek");
    CHECK(rway_ring_claim(rway_region_producer(link.b, 0), &out, 1) == 1, "claim");
    CHECK(ftruncate(link.fd, 0) == 0, "truncate");
    int count = (int)rway_consumer_pieces(rway_region_consumer(link.a, 0), &in, pieces);
    CHECK(writev(ends[1], (struct iovec *)pieces, count) < 0 && errno == EFAULT, "writev: %s", strerror(errno));
    rway_consumer_vanished(rway_region_consumer(link.a, 0));
    CHECK(rway_region_broken(link.a) == RWAY_BROKEN_VANISHED, "consumer");
    count = (int)rway_producer_pieces(rway_region_producer(link.b, 0), &out, pieces);
    CHECK(readv(ends[0], (struct iovec *)pieces, count) < 0 && errno == EFAULT, "readv: %s", strerror(errno));
    rway_producer_vanished(rway_region_producer(link.b, 0));
    CHECK(rway_region_broken(link.b) == RWAY_BROKEN_VANISHED, "producer");
    CHECK(rway_producer_broken(rway_region_producer(link.b, 0)) == RWAY_BROKEN_VANISHED, "producer");
    works(&good);
    detach(&link);
    detach(&good);
}

/* ---- holes, which seals do not forbid ---- */

static void punch(const struct link *link, uint64_t offset, uint64_t size)
{
    CHECK(fallocate(link->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) == 0, "punch: %s",
          strerror(errno));
}

static void holes_break_the_link_or_read_as_zeros(void)
{
    struct link good = make_link(true);
    struct link link = make_link(true);
    const struct rway_shape *shape = rway_region_shape(link.a);
    works(&link);
    punch(&link, 0, RWAY_HEADER_SIZE + 2 * RWAY_SIDE_SIZE); /* nobody reads it again */
    works(&link);
    send_frames(link.a, 5, 60);
    punch(&link, shape->rings_offset[0] + 4096, shape->queue_size - 4096); /* slots */
    CHECK(receive_frames(link.b) == 5, "frames of zeros");
    works(&link);
    punch(&link, shape->rings_offset[0], 4096); /* head and tail */
    send_frames(link.a, 64, 60);
    CHECK(receive_frames(link.b) > 0 || rway_region_broken(link.b), "neither frames nor a break");
    send_frames(link.a, 64, 60);
    CHECK(rway_region_broken(link.a) == RWAY_BROKEN_TAIL || !rway_region_broken(link.a), "broken is %d",
          rway_region_broken(link.a));
    works(&good);
    detach(&link);

    link = make_link(true);
    works(&link);
    send_frames(link.a, 5, 60);
    punch(&link, rway_region_shape(link.a)->rings_offset[0], 4096);
    CHECK(receive_frames(link.b) == 0, "frames without a head");
    CHECK(rway_region_broken(link.b) == RWAY_BROKEN_HEAD, "broken is %d", rway_region_broken(link.b));
    works(&good);
    detach(&link);
    detach(&good);
}

/* From here on no handler can be set. False where the kernel, or what stands in its place, does not offer that. */
static bool forbid_sigaction(void)
{
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_rt_sigaction, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof steps / sizeof *steps, .filter = steps};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void a_handler_that_cannot_be_set_is_what_the_refusal_names(void)
{
    struct rway_error error;
    int fd = rway_region_create(&GEOMETRY, LINK, 0, &error);
    CHECK(fd >= 0, "%s", error.what);
    if (!forbid_sigaction())
        return;
    CHECK(rway_region_attach(fd, &GEOMETRY, LINK, RWAY_SIDE_A, 1, &error) == NULL, "attached without a guard");
    CHECK(error.cause == RWAY_REFUSED_SYSTEM && error.sys_errno == EPERM, "cause %d", (int)error.cause);
    CHECK(strcmp(error.what, "sigaction of SIGBUS") == 0, "%s", error.what);
}

int main(void)
{
    const struct check checks[] = {
        ENDS(shortened_memory_breaks_its_region_alone, 0, 0),
        ENDS(shortened_in_the_middle_of_a_frame, 0, 0),
        ENDS(attaching_to_shortened_memory_is_refused, 0, 0),
        ENDS(system_calls_find_the_memory_gone, 0, 0),
        ENDS(holes_break_the_link_or_read_as_zeros, 0, 0),
        ENDS(a_handler_that_cannot_be_set_is_what_the_refusal_names, 0, 0),
    };
    return run_checks(checks, sizeof checks / sizeof *checks);
}
