/*
 * What every C file of shm/ includes: the shared layout and the public functions as C sees them, the asserts that the
 * layout is what layout.h says, and the only four ways to touch a word that another process may write.
 */
#ifndef RINGWAY_H
#define RINGWAY_H

#include <stddef.h>
#include <stdint.h>

#include "layout.h"

/* What is public is exported from the extension module: C code in the same process can use it without a copy. */
#pragma GCC visibility push(default)
#include "api.h"
#pragma GCC visibility pop

#define RWAY_MAGIC ((uint64_t)RWAY_MAGIC_HIGH << 32 | RWAY_MAGIC_LOW)

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "layout 1 is little-endian and is not translated"
#endif
_Static_assert(__atomic_always_lock_free(4, 0) && __atomic_always_lock_free(8, 0), "shared words need plain atomics");

#define RWAY_AT(type, field, at) \
    _Static_assert(offsetof(struct type, field) == (at), #type "." #field " is not where layout 1 has it")

RWAY_AT(rway_geometry, queues, 0);
RWAY_AT(rway_geometry, slot_count, 4);
RWAY_AT(rway_geometry, slot_payload, 8);
RWAY_AT(rway_geometry, headroom, 12);
_Static_assert(sizeof(struct rway_geometry) == 16, "geometry");
RWAY_AT(rway_section, kind, 0);
RWAY_AT(rway_section, flags, 4);
RWAY_AT(rway_section, offset, 8);
RWAY_AT(rway_section, length, 16);
RWAY_AT(rway_section, writer, 24);
RWAY_AT(rway_section, reader, 28);
_Static_assert(sizeof(struct rway_section) == 32, "section");

RWAY_AT(rway_header, magic, 0);
RWAY_AT(rway_header, major, 8);
RWAY_AT(rway_header, minor, 10);
RWAY_AT(rway_header, header_size, 12);
RWAY_AT(rway_header, region_size, 16);
RWAY_AT(rway_header, link_id, 24);
RWAY_AT(rway_header, features_required, 32);
RWAY_AT(rway_header, features_optional, 36);
RWAY_AT(rway_header, features_readable, 40);
RWAY_AT(rway_header, section_count, 44);
RWAY_AT(rway_header, geometry, 48);
RWAY_AT(rway_header, slot_stride, 64);
RWAY_AT(rway_header, frame_max, 68);
RWAY_AT(rway_header, sections, 128);
_Static_assert(sizeof(struct rway_header) <= RWAY_HEADER_SIZE, "the section table fits the header");
_Static_assert(sizeof(((struct rway_header *)0)->sections) == 32 * RWAY_SECTIONS_MAX, "section table");

RWAY_AT(rway_side, state, 0);
RWAY_AT(rway_side, cause, 4);
RWAY_AT(rway_side, incarnation, 8);
RWAY_AT(rway_side, queues_served, 12);
RWAY_AT(rway_side, taken, 16);
RWAY_AT(rway_side, given, 40);
RWAY_AT(rway_tally, group, 0);
RWAY_AT(rway_tally, members, 8);
RWAY_AT(rway_tally, base, 16);
_Static_assert(sizeof(struct rway_side) == RWAY_SIDE_SIZE, "side");
_Static_assert(RWAY_HEADER_SIZE + 2 * RWAY_SIDE_SIZE <= RWAY_RINGS_ALIGN, "header and sides lie before the rings");

/* 128 bytes apart: the adjacent-line prefetcher of x86 moves lines in pairs. */
RWAY_AT(rway_ring_control, head, 0);
RWAY_AT(rway_ring_control, tail, 128);
RWAY_AT(rway_ring_control, wake_consumer, 256);
RWAY_AT(rway_ring_control, wake_producer, 384);
RWAY_AT(rway_ring_control, produced, 512);
RWAY_AT(rway_ring_control, consumed, 896);
RWAY_AT(rway_ring_control, published, 1280);
RWAY_AT(rway_ring_control, originated, 1344);
RWAY_AT(rway_ring_control, released, 1408);
RWAY_AT(rway_ring_control, begun, 1472);
RWAY_AT(rway_ring_control, stalled, 1480);
RWAY_AT(rway_ring_control, replicated, 1488);
RWAY_AT(rway_commit, at, 0);
RWAY_AT(rway_commit, frames, 8);
RWAY_AT(rway_commit, bytes, 16);
RWAY_AT(rway_commit, dropped, 24);
_Static_assert(2 * sizeof(struct rway_commit) == RWAY_LINE, "both commits of a counter are one line");
RWAY_AT(rway_counts, frames, 0);
RWAY_AT(rway_counts, bytes, 8);
RWAY_AT(rway_counts, bells, 16);
RWAY_AT(rway_counts, sleeps, 24);
RWAY_AT(rway_counts, bells_idle, 32);
RWAY_AT(rway_counts, mutes, 40);
RWAY_AT(rway_counts, drops, 48);
_Static_assert(sizeof(struct rway_counts) == 5 * RWAY_LINE, "counts fill their own lines");
_Static_assert(sizeof(((struct rway_counts *)0)->drops) == 8 * RWAY_DROPS, "drop causes");
_Static_assert(sizeof(struct rway_ring_control) == 1536, "ring control");

RWAY_AT(rway_desc, kind, 0);
RWAY_AT(rway_desc, flags, 1);
RWAY_AT(rway_desc, slots, 2);
RWAY_AT(rway_desc, len, 4);
RWAY_AT(rway_desc, vlan, 8);
RWAY_AT(rway_desc, pushed, 10);
RWAY_AT(rway_desc, hash, 12);
_Static_assert(sizeof(struct rway_desc) == 16, "descriptor");
_Static_assert(RWAY_SLOTS_MIN * sizeof(struct rway_desc) % RWAY_LINE == 0, "slots begin on a line");
_Static_assert(RWAY_FLAGS_KNOWN == (RWAY_FLAG_EXTENSION | RWAY_FLAG_VLAN | RWAY_FLAG_HASH | RWAY_FLAG_CSUM_VALID),
               "the known flags are those that are listed");

RWAY_AT(rway_extension, flags, 0);
RWAY_AT(rway_extension, gso_type, 2);
RWAY_AT(rway_extension, gso_size, 4);
RWAY_AT(rway_extension, hdr_len, 6);
RWAY_AT(rway_extension, csum_start, 8);
RWAY_AT(rway_extension, csum_offset, 10);
_Static_assert(sizeof(struct rway_extension) == RWAY_LINE, "the extension is one line");
_Static_assert(RWAY_HEADROOM_MIN == sizeof(struct rway_extension), "the least headroom is the extension alone");
_Static_assert(RWAY_PIECES_MAX >= (RWAY_FRAME_MAX + RWAY_PAYLOAD_MIN - 1) / RWAY_PAYLOAD_MIN, "pieces");

/* Shared words are read and written through these and nothing else, so that each is fetched once. */
#define rway_load_acquire(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
#define rway_store_release(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
#define rway_read_once(word) __atomic_load_n((word), __ATOMIC_RELAXED)
#define rway_write_once(word, value) __atomic_store_n((word), (value), __ATOMIC_RELAXED)
#define rway_full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/*
 * Stores before this line come before those behind it in what a kill of this thread leaves behind: "Restarts" in
 * layout.h. No instruction; the kernel stops a thread between two, so only the compiler has to be held to the order.
 */
#define rway_keep_order() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* Fill an error and return its negative cause. */
int rway_refuse(struct rway_error *error, int cause, const char *what, uint64_t found, uint64_t expected);

/* The same for a system call that has just failed; errno goes into the error. */
int rway_refuse_errno(struct rway_error *error, const char *call);

#endif
