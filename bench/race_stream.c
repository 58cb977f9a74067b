/* Bulk TCP of `bench race`: 128 KiB a call, as iperf3 does it. Each end runs until its process is ended. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>

#include "bench.h"

#include "race_traffic.h"

enum { CHUNK = 128 * 1024 };

int bench_race_stream_send(int fd, struct race_books *shared)
{
    static uint8_t chunk[CHUNK];
    uint64_t sent = 0;
    for (;;) {
        ssize_t took = send(fd, chunk, sizeof chunk, MSG_NOSIGNAL);
        if (took < 0 && errno != EINTR)
            return -errno;
        race_write(&shared->sent, ++sent);
    }
}

int bench_race_stream_receive(int fd, struct race_books *shared)
{
    static uint8_t chunk[CHUNK];
    uint64_t bytes = 0;
    for (;;) {
        ssize_t got = recv(fd, chunk, sizeof chunk, 0);
        if (got == 0 || (got < 0 && errno != EINTR))
            return got == 0 ? -EPIPE : -errno;
        bytes += got > 0 ? (uint64_t)got : 0;
        race_write(&shared->bytes, bytes);
    }
}
