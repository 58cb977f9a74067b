/* Who gets a SIGBUS that no region caused: whoever got it before there were regions, or the process ends. */
#define _GNU_SOURCE
#include "guarded_link.h"

static volatile char *memory_that_is_not_there(void)
{
    int fd = memfd_create("elsewhere", MFD_CLOEXEC);
    CHECK(ftruncate(fd, 4096) == 0, "grow");
    char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED && ftruncate(fd, 0) == 0, "shorten");
    return memory;
}

static void one_elsewhere_ends_the_process(void)
{
    make_link(true);
    *memory_that_is_not_there() = 1;
}

static void one_that_was_sent_ends_the_process(void)
{
    struct link link = make_link(true);
    works(&link);
    kill(getpid(), SIGBUS);
}

static void one_after_all_regions_are_gone_ends_the_process(void)
{
    struct link link = make_link(true);
    volatile uint8_t *stale = link.a->memory;
    detach(&link);
    CHECK(mmap((void *)stale, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd_create("empty", MFD_CLOEXEC),
               0) != MAP_FAILED,
          "map");
    *stale = 1;
}

static void exit_with_42(int number)
{
    _exit(number == SIGBUS ? 42 : 1);
}

static volatile char *volatile expected_at;

static void exit_with_42_where_expected(int number, siginfo_t *info, void *context)
{
    _exit(number == SIGBUS && info->si_addr == (void *)expected_at && context != NULL ? 42 : 1);
}

static void one_elsewhere_goes_to_the_handler_before(void)
{
    signal(SIGBUS, exit_with_42);
    make_link(true);
    *memory_that_is_not_there() = 1;
}

static void one_elsewhere_goes_to_the_handler_before_with_its_address(void)
{
    struct sigaction action = {.sa_sigaction = exit_with_42_where_expected, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    make_link(true);
    expected_at = memory_that_is_not_there();
    *expected_at = 1;
}

static void one_elsewhere_goes_to_the_handler_that_came_between(void)
{
    make_link(true);
    signal(SIGBUS, exit_with_42);
    struct link link = make_link(false);
    CHECK(ftruncate(link.fd, 0) == 0, "truncate");
    CHECK(receive_frames(link.a) == 0, "frames from nowhere");
    CHECK(rway_region_broken(link.a) == RWAY_BROKEN_VANISHED, "not noticed");
    *memory_that_is_not_there() = 1;
}

static void one_that_was_sent_is_ignored_as_before(void)
{
    signal(SIGBUS, SIG_IGN);
    struct link link = make_link(false);
    kill(getpid(), SIGBUS);
    works(&link);
    CHECK(ftruncate(link.fd, 0) == 0, "truncate");
    CHECK(receive_frames(link.a) == 0, "frames from nowhere");
    CHECK(rway_region_broken(link.a) == RWAY_BROKEN_VANISHED, "not noticed");
    detach(&link);
}

int main(void)
{
    const struct check checks[] = {
        ENDS(one_elsewhere_ends_the_process, SIGBUS, 0),
        ENDS(one_that_was_sent_ends_the_process, SIGBUS, 0),
        ENDS(one_after_all_regions_are_gone_ends_the_process, SIGBUS, 0),
        ENDS(one_elsewhere_goes_to_the_handler_before, 0, 42),
        ENDS(one_elsewhere_goes_to_the_handler_before_with_its_address, 0, 42),
        ENDS(one_elsewhere_goes_to_the_handler_that_came_between, 0, 42),
        ENDS(one_that_was_sent_is_ignored_as_before, 0, 0),
    };
    return run_checks(checks, sizeof checks / sizeof *checks);
}
