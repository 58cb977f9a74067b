/* A lock for a few instructions, one word that is 0 while nobody has it. */
#ifndef RWAY_STACK_SPINLOCK_H
#define RWAY_STACK_SPINLOCK_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

/* Acquire pairs with the release in rway_unlock: what the holder before has done under the lock is seen. */
static inline bool rway_try_lock(uint32_t *lock)
{
    return __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) == 0;
}

static inline void rway_lock(uint32_t *lock)
{
    enum { SPINS = 100 /* looks before the processor is given away: the holder may not be running */ };

    for (uint32_t looks = 1; !rway_try_lock(lock); looks++)
        if (looks % SPINS == 0)
            sched_yield();
}

static inline void rway_unlock(uint32_t *lock)
{
    __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

#endif
