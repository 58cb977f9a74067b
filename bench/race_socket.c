/*
 * The kernel's ends of `bench race`: connected UDP sockets, 64 messages a system call. Each runs until its process is
 * ended, and stays in one call of C.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "bench.h"

#include "race_traffic.h"

/* 64 messages of one buffer each. */
struct batch {
    struct mmsghdr messages[RACE_BURST];
    struct iovec pieces[RACE_BURST];
    uint8_t payloads[RACE_BURST][RACE_PAYLOAD_MAX];
};

static void prepare(struct batch *batch, uint32_t len)
{
    for (uint32_t i = 0; i < RACE_BURST; i++) {
        batch->pieces[i] = (struct iovec){.iov_base = batch->payloads[i], .iov_len = len};
        batch->messages[i].msg_hdr = (struct msghdr){.msg_iov = &batch->pieces[i], .msg_iovlen = 1};
    }
}

/* Errors that go away: no buffers just now, and a port unreachable that an earlier datagram brought back. */
static bool passes(int error)
{
    return error == EINTR || error == ENOBUFS || error == EAGAIN || error == ECONNREFUSED;
}

int bench_race_socket_send(int fd, uint32_t len, struct race_books *shared)
{
    static struct batch batch;
    uint64_t number = 0;
    if (len < RACE_PAYLOAD_MIN || len > RACE_PAYLOAD_MAX)
        return -EINVAL;
    prepare(&batch, len);
    for (;;) {
        for (uint32_t i = 0; i < RACE_BURST; i++)
            race_payload_fill(batch.payloads[i], len, number + i);
        uint32_t done = 0;
        while (done < RACE_BURST) {
            int sent = sendmmsg(fd, &batch.messages[done], RACE_BURST - done, 0);
            if (sent < 0 && !passes(errno))
                return -errno;
            done += sent > 0 ? (uint32_t)sent : 0;
        }
        number += RACE_BURST;
        race_write(&shared->sent, number);
    }
}

int bench_race_socket_receive(int fd, struct race_books *shared)
{
    static struct batch batch;
    static struct race_sink sink;
    prepare(&batch, RACE_PAYLOAD_MAX);
    for (;;) {
        int got = recvmmsg(fd, batch.messages, RACE_BURST, MSG_WAITFORONE, NULL);
        if (got < 0 && !passes(errno))
            return -errno;
        for (int i = 0; i < got; i++)
            race_take(&sink, batch.payloads[i], batch.messages[i].msg_len);
        race_publish(&sink, shared);
    }
}
