/* The distance of two cores: how long a cache line takes from one to the other and back. */
#define _GNU_SOURCE
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "touch.h"

enum { ROUNDS = 2000, SAMPLES = 9 };

struct ball {
    _Alignas(128) uint64_t value;
    _Alignas(128) uint64_t done;
    int cpu;
};

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *answer(void *argument)
{
    struct ball *ball = argument;
    uint64_t expected = 1;
    pin(ball->cpu);
    __atomic_store_n(&ball->done, 1, __ATOMIC_RELEASE);
    while (expected < 2 * (uint64_t)ROUNDS * SAMPLES) {
        uint64_t value = __atomic_load_n(&ball->value, __ATOMIC_ACQUIRE);
        if (value == UINT64_MAX)
            break;
        if (value != expected)
            continue;
        __atomic_store_n(&ball->value, expected + 1, __ATOMIC_RELEASE);
        expected += 2;
    }
    return NULL;
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double median(double *values, int count)
{
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && values[j] < values[j - 1]; j--) {
            double swapped = values[j];
            values[j] = values[j - 1];
            values[j - 1] = swapped;
        }
    return values[count / 2];
}

double bench_core_distance(int cpu_a, int cpu_b)
{
    struct ball ball = {.cpu = cpu_b};
    pthread_t thread;
    cpu_set_t before;
    double samples[SAMPLES];
    sched_getaffinity(0, sizeof before, &before);
    pin(cpu_a);
    if (pthread_create(&thread, NULL, answer, &ball) != 0)
        return -1;
    while (!__atomic_load_n(&ball.done, __ATOMIC_ACQUIRE))
        sched_yield();
    uint64_t value = 0;
    for (int i = 0; i < SAMPLES; i++) {
        double start = now_ns();
        for (int round = 0; round < ROUNDS; round++) {
            __atomic_store_n(&ball.value, value + 1, __ATOMIC_RELEASE);
            while (__atomic_load_n(&ball.value, __ATOMIC_ACQUIRE) != value + 2)
                ;
            value += 2;
        }
        samples[i] = (now_ns() - start) / ROUNDS;
    }
    __atomic_store_n(&ball.value, UINT64_MAX, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    sched_setaffinity(0, sizeof before, &before);
    return median(samples, SAMPLES);
}
