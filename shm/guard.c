/*
 * The SIGBUS guard: memory that vanishes under a mapping breaks what it belongs to, a region or a guest, and no more.
 *
 * A carrier can be shortened, or have holes punched into it on a host without memory to fill them; the next access is
 * then a SIGBUS in whoever touches it. The handler puts private zero pages over the whole mapping and marks its owner
 * broken, so that the access returns, reads zeros, and the next check sees the mark. mmap is a bare system
 * call on Linux and safe in a handler. A SIGBUS outside all guarded memory goes to the handler that was there before.
 */
#define _GNU_SOURCE
#include "guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

enum { MAPPINGS_MAX = 1024 };

static struct {
    uintptr_t start; /* 0: free; stored last, cleared first */
    uint64_t size;
    int *broken;
} guarded[MAPPINGS_MAX];

static pthread_mutex_t changes = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;

static int inside_previous; /* calls of the previous handler that have not returned */

static bool has_previous(void)
{
    return previous.sa_flags & SA_SIGINFO || (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN);
}

static void call_previous(int number, siginfo_t *info, void *context)
{
    __atomic_fetch_add(&inside_previous, 1, __ATOMIC_RELAXED);
    if (previous.sa_flags & SA_SIGINFO)
        previous.sa_sigaction(number, info, context);
    else
        previous.sa_handler(number);
    __atomic_fetch_sub(&inside_previous, 1, __ATOMIC_RELAXED);
}

static void pass_on(int number, siginfo_t *info, void *context)
{
    bool was_sent = info->si_code <= 0;
    /* A handler that comes before and behind ours (Python's faulthandler can) hands the signal back by sending it. */
    bool handed_back = was_sent && rway_read_once(&inside_previous) != 0;
    if (has_previous() && !handed_back) {
        call_previous(number, info, context);
        return;
    }
    if (was_sent && !handed_back && previous.sa_handler == SIG_IGN)
        return;
    /* The faulting instruction runs again and now ends the process, with the address in its core. */
    signal(SIGBUS, SIG_DFL);
    /* One that was sent has no such instruction: it is sent again, and arrives when this handler returns. */
    if (was_sent)
        raise(SIGBUS);
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    /* A code of 0 or less: sent by a process, and what stands in si_addr is not an address. */
    for (int i = 0; i < MAPPINGS_MAX && info->si_code > 0; i++) {
        /* Acquire: pairs with the release in rway_guard_add; size and broken are written before start. */
        uintptr_t start = __atomic_load_n(&guarded[i].start, __ATOMIC_ACQUIRE);
        if (start == 0 || at < start || at - start >= guarded[i].size)
            continue;
        int whole = RWAY_WHOLE;
        __atomic_compare_exchange_n(guarded[i].broken, &whole, RWAY_BROKEN_VANISHED, 0, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED);
        void *over = mmap((void *)start, guarded[i].size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (over != MAP_FAILED)
            return;
    }
    pass_on(number, info, context);
}

/* Other code may have put its own handler over ours since the last mapping; then that is the one we pass on to. */
static int install(void)
{
    struct sigaction current;
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_sigbus;
    /* NODEFER, so that a previous handler that sends the signal on does it while we know which one that is: pass_on. */
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, NULL, &current) != 0)
        return -1;
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_sigbus)
        return 0;
    previous = current;
    return sigaction(SIGBUS, &ours, NULL);
}

static int find_free(void)
{
    int place = 0;
    while (place < MAPPINGS_MAX && guarded[place].start != 0)
        place++;
    return place;
}

int rway_guard_add(void *memory, uint64_t size, int *broken, struct rway_error *error)
{
    int refused = 0;
    pthread_mutex_lock(&changes);
    int place = find_free();
    if (place == MAPPINGS_MAX) {
        refused = rway_refuse(error, RWAY_REFUSED_ARGUMENT, "guarded mappings in this process", MAPPINGS_MAX + 1,
                              MAPPINGS_MAX);
    } else if (install() != 0) {
        refused = rway_refuse_errno(error, "sigaction of SIGBUS");
    } else {
        guarded[place].size = size;
        guarded[place].broken = broken;
        __atomic_store_n(&guarded[place].start, (uintptr_t)memory, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&changes);
    return refused;
}

static void forget(const void *memory, const int *broken)
{
    for (int i = 0; i < MAPPINGS_MAX; i++)
        if (guarded[i].start == (uintptr_t)memory && guarded[i].broken == broken)
            __atomic_store_n(&guarded[i].start, 0, __ATOMIC_RELEASE);
}

void rway_guard_remove(void *memory, const int *broken)
{
    pthread_mutex_lock(&changes);
    forget(memory, broken);
    pthread_mutex_unlock(&changes);
}

void rway_guard_remove_in_child(void *memory, const int *broken)
{
    changes = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER; /* whoever held it is not in this process */
    forget(memory, broken);
}
