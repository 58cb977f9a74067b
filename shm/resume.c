/*
 * A ring taken up where it stands: after an orderly detach, or after a kill at whatever instruction.
 *
 * "Restarts" in layout.h says in which order an end stores its words; here is what follows from it. All of them are
 * read once and as if a peer had written them, because one could have: a word that cannot be is left out of account,
 * and one that can be and is wrong falsifies counts, which are for people. A kill in between costs no step:
 *
 *      commit of a new tail ─► tail ─► counts
 */
#include "slot.h"

uint64_t rway_counts_dropped(const struct rway_counts *counts)
{
    uint64_t dropped = 0;
    for (uint32_t cause = 0; cause < RWAY_DROPS; cause++)
        dropped += counts->drops[cause];
    return dropped;
}

int rway_counts_settle(struct rway_counts *counts, const struct rway_commit commits[2], uint64_t at)
{
    for (int i = 0; i < 2; i++) {
        if (commits[i].at != at)
            continue;
        uint64_t stored = rway_counts_dropped(counts);
        counts->frames = commits[i].frames;
        counts->bytes = commits[i].bytes;
        if ((int64_t)(commits[i].dropped - stored) > 0)
            counts->drops[RWAY_DROP_RESTART] += commits[i].dropped - stored;
        return i;
    }
    return -1;
}

static void read_words(void *to, const void *shared, size_t size)
{
    for (size_t i = 0; i < size / sizeof(uint64_t); i++)
        ((uint64_t *)to)[i] = rway_read_once(&((const uint64_t *)shared)[i]);
}

/*
 * *next is the commit to be written next; extra is what goes with the commits. Where no commit belongs to the counter,
 * one is made that does.
 */
static void settle(struct rway_counts *counts, struct rway_commit shared[2], uint64_t at, uint32_t *next,
                   uint64_t shared_extra[2], struct rway_extra *extra)
{
    struct rway_commit commits[2];
    read_words(commits, shared, sizeof commits);
    read_words(extra->stored, shared_extra, sizeof extra->stored);
    int found = rway_counts_settle(counts, commits, at);
    *next = found == 0;
    extra->now = extra->stored[found < 0 ? 0 : found];
    if (found >= 0)
        return;
    rway_extra_store(shared_extra, extra, *next);
    rway_commit_store(shared, next, at, counts, rway_counts_dropped(counts));
}

int rway_producer_resume(struct rway_producer *producer, struct rway_ring ring, struct rway_error *error)
{
    struct rway_ring_control *control = ring.control;
    uint64_t head = rway_read_once(&control->head);
    uint64_t tail = rway_load_acquire(&control->tail);
    if (head - tail > ring.slot_count)
        return rway_refuse(error, RWAY_REFUSED_COUNTERS, "head of an own ring", head - tail, ring.slot_count);
    *producer = (struct rway_producer){.ring = ring,
                                       .head = head,
                                       .claimed = head,
                                       .peer_tail = tail,
                                       .looked_at = head,
                                       .attached_at = head,
                                       .bell = {.wait_fd = -1, .ring_fd = -1}};
    read_words(&producer->counts, &control->produced, sizeof producer->counts);
    settle(&producer->counts, control->published, head, &producer->next_commit, control->originated,
           &producer->originated);
    producer->dropped = rway_counts_dropped(&producer->counts);
    rway_counts_store(&control->produced, &producer->counts);
    return 0;
}

/*
 * Count the frames that the end before had begun to hand on. False: there are none, or this cannot be, because a frame
 * in between is damaged or none ends at begun. What a bad peer would gain without the check: a tail inside a frame.
 */
static bool count_begun(const struct rway_ring *ring, uint64_t tail, uint64_t head, uint64_t begun,
                        struct rway_counts *counts)
{
    if (begun == 0 || begun - tail > head - tail)
        return false;
    for (uint64_t at = tail; at != begun;) {
        struct rway_desc desc = rway_desc_fetch(ring, at);
        if (rway_desc_check(ring, &desc, at, begun - at) != RWAY_WHOLE)
            return false;
        counts->frames++;
        counts->bytes += desc.len;
        at += desc.slots;
    }
    return begun != tail;
}

/* Frames that were handed on are not handed on again; the last of them perhaps was not, so it counts as lost. */
static void take_begun(struct rway_consumer *consumer, uint64_t head)
{
    struct rway_ring_control *control = consumer->ring.control;
    struct rway_counts counts = consumer->counts;
    uint64_t begun = rway_read_once(&control->begun);
    if (!count_begun(&consumer->ring, consumer->tail, head, begun, &counts))
        return;
    counts.drops[RWAY_DROP_RESTART]++;
    consumer->counts = counts;
    consumer->tail = begun;
    rway_extra_store(control->replicated, &consumer->replicated, consumer->next_commit);
    rway_commit_store(control->released, &consumer->next_commit, begun, &counts, rway_counts_dropped(&counts));
    rway_write_once(&control->consumed.frames, counts.frames);
    rway_write_once(&control->consumed.bytes, counts.bytes);
    /* Release: as in rway_ring_release; the slots before it were read by the end that is gone. */
    rway_store_release(&control->tail, begun);
}

int rway_consumer_resume(struct rway_consumer *consumer, struct rway_ring ring, struct rway_error *error)
{
    struct rway_ring_control *control = ring.control;
    uint64_t tail = rway_read_once(&control->tail);
    uint64_t head = rway_load_acquire(&control->head);
    if (head - tail > ring.slot_count)
        return rway_refuse(error, RWAY_REFUSED_COUNTERS, "tail of the peer's ring", head - tail, ring.slot_count);
    *consumer =
        (struct rway_consumer){.ring = ring, .tail = tail, .looked_at = tail, .bell = {.wait_fd = -1, .ring_fd = -1}};
    read_words(&consumer->counts, &control->consumed, sizeof consumer->counts);
    settle(&consumer->counts, control->released, tail, &consumer->next_commit, control->replicated,
           &consumer->replicated);
    /* Before take_begun writes over a commit of which these may be. */
    rway_counts_store(&control->consumed, &consumer->counts);
    take_begun(consumer, head);
    consumer->cursor = consumer->peer_head = consumer->attached_at = consumer->tail;
    consumer->dropped = rway_counts_dropped(&consumer->counts);
    rway_counts_store(&control->consumed, &consumer->counts);
    rway_write_once(&control->stalled, 0);
    return 0;
}
