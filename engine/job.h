/*
 * What a C file includes that brings a job for a loop to run. The declarations are in engine/api.h; this is what they
 * ask of a job:
 *
 * - Everything in it is called by the loop's thread, except for free, which is called when that thread has ended.
 * - run never waits. What it has claimed it publishes, and what it has peeked it releases or puts back, before it
 *   returns: between two turns a loop may be stopped, and its process may be killed at any instruction.
 * - It releases its input before it publishes its output: a process that dies in between loses frames and
 *   doubles none.
 * - rway_ring_publish_more and rway_ring_release_more put a fence off to the next turn; a job that uses them calls them
 *   in every turn, with nothing to publish too. What it has put off when it is freed, it settles then.
 * - arm names everything that can bring it work. What it forgets costs milliseconds: a sleep that waits for a ring has
 *   a bound (rway_waiter_wait).
 * - It is one of several: a burst and no more in each direction, so that the others come to their turn.
 */
#ifndef RWAY_ENGINE_JOB_H
#define RWAY_ENGINE_JOB_H

#include <stdbool.h>

#include "shm/ringway.h"

#pragma GCC visibility push(default)
#include "engine/api.h"
#pragma GCC visibility pop

#endif
