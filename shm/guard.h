/*
 * The SIGBUS guard, for all memory that somebody else could shorten: see guard.c. A mapping is known by where it begins
 * and whose it is, and is removed before it is unmapped.
 */
#ifndef RINGWAY_GUARD_H
#define RINGWAY_GUARD_H

#include "ringway.h"

/*
 * From now on a SIGBUS in these size bytes puts zero pages over all of them and stores RWAY_BROKEN_VANISHED in *broken,
 * if that is RWAY_WHOLE, instead of ending the process. The caller's broken stays where it is until the mapping is
 * removed. Both addresses are multiples of what the mapping's pages are. Refuses as rway_refuse does.
 */
int rway_guard_add(void *memory, uint64_t size, int *broken, struct rway_error *error);
void rway_guard_remove(void *memory, const int *broken);
void rway_guard_remove_in_child(void *memory, const int *broken); /* after fork, before any other thread is started */

#endif
