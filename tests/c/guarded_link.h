/* Links whose memory can be taken away, and checks that run in a process each, because signal handlers belong to it. */
#ifndef GUARDED_LINK_H
#define GUARDED_LINK_H

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"

enum { LINK = 7, HEAD_SIZE = RWAY_HEADER_SIZE + 2 * RWAY_SIDE_SIZE };

static const struct rway_geometry GEOMETRY = {.queues = 1, .slot_count = 64, .slot_payload = 2048, .headroom = 64};

/* A link with both ends in this process. */
struct link {
    int fd;
    struct rway_region *a, *b;
};

static inline struct rway_region *attach(int fd, uint32_t side)
{
    struct rway_error error;
    struct rway_region *region = rway_region_attach(fd, &GEOMETRY, LINK, side, 1, &error);
    CHECK(region != NULL, "%s is %lu", error.what, (unsigned long)error.found);
    return region;
}

/* sealed: as the broker makes it. Otherwise of the kind that a front end may bring, which can be shortened. */
static inline struct link make_link(bool sealed)
{
    struct rway_error error;
    struct link link;
    link.fd = rway_region_create(&GEOMETRY, LINK, 0, &error);
    CHECK(link.fd >= 0, "%s", error.what);
    if (!sealed) {
        static uint8_t head[HEAD_SIZE];
        int fd = memfd_create("unsealed", MFD_CLOEXEC);
        CHECK(pread(link.fd, head, sizeof head, 0) == HEAD_SIZE, "read");
        CHECK(ftruncate(fd, lseek(link.fd, 0, SEEK_END)) == 0 && pwrite(fd, head, sizeof head, 0) == HEAD_SIZE, "copy");
        close(link.fd);
        link.fd = fd;
    }
    link.a = attach(link.fd, RWAY_SIDE_A);
    link.b = attach(link.fd, RWAY_SIDE_B);
    return link;
}

static inline void detach(struct link *link)
{
    rway_region_detach(link->a);
    rway_region_detach(link->b);
    close(link->fd);
}

static inline void send_frames(struct rway_region *region, uint32_t count, uint32_t len)
{
    struct rway_producer *producer = rway_region_producer(region, 0);
    for (uint32_t i = 0; i < count; i++) {
        struct rway_frame frame = {.len = len};
        struct rway_piece pieces[RWAY_PIECES_MAX];
        if (rway_ring_claim(producer, &frame, 1) != 1)
            return;
        uint32_t pieces_count = rway_producer_pieces(producer, &frame, pieces);
        for (uint32_t k = 0; k < pieces_count; k++)
            memset(pieces[k].data, 0x5a, pieces[k].len);
        rway_ring_publish(producer, &frame, 1);
    }
}

static inline uint32_t receive_frames(struct rway_region *region)
{
    static uint8_t bytes[64 * 2048];
    uint32_t lens[64];
    return rway_frames_copy_out(rway_region_consumer(region, 0), bytes, sizeof bytes, lens, 64);
}

static inline void works(struct link *link)
{
    for (int turn = 0; turn < 200; turn++) {
        send_frames(link->a, 10, 1000);
        CHECK(receive_frames(link->b) == 10, "frames");
        send_frames(link->b, 3, 5000);
        CHECK(receive_frames(link->a) == 3, "frames");
    }
    CHECK(!rway_region_broken(link->a) && !rway_region_broken(link->b), "broken");
}

static inline int status_of(void (*check)(void))
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL); /* the sanitizers have a handler, which is another one before */
        alarm(60);
        check();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child, "wait");
    return status;
}

/* One check and how its process must end. */
struct check {
    const char *name;
    void (*run)(void);
    int signal; /* that ends it, or 0 */
    int exits_with;
};

#define ENDS(check, signal, status) {#check, check, signal, status}

static inline int run_checks(const struct check *checks, size_t count)
{
    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        int status = status_of(checks[i].run);
        bool as_expected = checks[i].signal ? WIFSIGNALED(status) && WTERMSIG(status) == checks[i].signal
                                            : WIFEXITED(status) && WEXITSTATUS(status) == checks[i].exits_with;
        printf("%s: %s (status %#x)\n", checks[i].name, as_expected ? "yes" : "NO", (unsigned)status);
        failed |= !as_expected;
    }
    return failed;
}

#endif
