/*
 * Swaps the rule table in force while loop threads judge by it, and adds up what they counted.
 *
 * A reader (loop thread) shows the epoch that it has seen, or AWAY. Replacing a table stores the new one, then the next
 * epoch; the old table is freed once every reader is away or has shown that epoch, because by then each has passed the
 * top of its loop, where it forgets its table and loads the one in force. Readers never wait and, between two
 * replacements, store nothing.
 *
 *      reader.seen      who      when                                    holds
 *      AWAY → epoch     reader   enter, before it loads the table        the table it then loads
 *      epoch → later    reader   enter, after it has used the old one    the table it then loads
 *      any → AWAY       reader   leave                                   nothing
 *      AWAY → used      never    a table is only used between enter and leave
 */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "conntrack.h"

enum { AWAY = 0, FIRST_EPOCH = 1, WAIT_MS = 1000, LOOK_AGAIN_US = 50 };

/* Whole pairs of lines, because processors fetch lines in pairs. Writer: the reader's thread. */
struct reader {
    uint64_t seen;
    uint8_t pad[2 * RWAY_LINE - sizeof(uint64_t)];
    struct rway_unparsed_counts unparsed;
} __attribute__((aligned(2 * RWAY_LINE)));

struct rway_filter {
    struct reader readers[RWAY_READERS_MAX];
    struct rway_filter_table *current; /* writer: replace */
    uint64_t epoch;                    /* writer: replace */
    struct rway_conntrack *conntrack;  /* NULL: no connections are remembered */
    struct rway_conntrack_reader *conntrack_readers;
    uint8_t pad[2 * RWAY_LINE - 3 * sizeof(void *) - sizeof(uint64_t)];
    pthread_mutex_t lock; /* guards what follows, and all writing of the two above */
    uint64_t readers_taken;
    struct rway_filter_table *retired; /* newest first */
} __attribute__((aligned(2 * RWAY_LINE)));

_Static_assert(RWAY_READERS_MAX == 64, "readers_taken has a bit for each reader");

struct rway_filter *rway_filter_new(void)
{
    struct rway_filter *filter = aligned_alloc(2 * RWAY_LINE, sizeof(*filter));

    if (!filter)
        return NULL;
    memset(filter, 0, sizeof(*filter));
    filter->current = rway_filter_table_new(NULL, 0, RWAY_DENY, NULL);
    filter->epoch = FIRST_EPOCH;
    if (!filter->current || pthread_mutex_init(&filter->lock, NULL) != 0) {
        rway_filter_table_free(filter->current);
        free(filter);
        return NULL;
    }
    return filter;
}

void rway_filter_free(struct rway_filter *filter)
{
    if (!filter)
        return;
    while (filter->retired) {
        struct rway_filter_table *table = filter->retired;

        filter->retired = table->next;
        rway_filter_table_free(table);
    }
    rway_filter_table_free(filter->current);
    pthread_mutex_destroy(&filter->lock);
    free(filter->conntrack_readers);
    rway_conntrack_free(filter->conntrack);
    free(filter);
}

int rway_filter_track(struct rway_filter *filter, uint32_t connections, const struct rway_conntrack_timeouts *timeouts,
                      struct rway_error *error)
{
    if (filter->conntrack)
        return rway_refuse(error, RWAY_REFUSED_ARGUMENT, "tables of connections", 2, 1);
    filter->conntrack = rway_conntrack_new(connections, timeouts, error);
    if (!filter->conntrack)
        return error ? -(int)error->cause : -RWAY_REFUSED_SYSTEM;
    filter->conntrack_readers = rway_conntrack_readers_new(filter->conntrack);
    return filter->conntrack_readers ? 0 : rway_refuse_errno(error, "memory for connections");
}

struct rway_conntrack_reader *rway_filter_conntrack(struct rway_filter *filter, uint32_t reader)
{
    return filter->conntrack_readers ? rway_conntrack_reader_at(filter->conntrack_readers, reader) : NULL;
}

void rway_filter_conntrack_counts(const struct rway_filter *filter, struct rway_conntrack_counts *out)
{
    *out = (struct rway_conntrack_counts){0};
    for (uint32_t reader = 0; filter->conntrack_readers && reader < RWAY_READERS_MAX; reader++)
        rway_conntrack_counts_add(rway_conntrack_reader_at(filter->conntrack_readers, reader), out);
}

struct rway_unparsed_counts *rway_filter_unparsed(struct rway_filter *filter, uint32_t reader)
{
    return &filter->readers[reader].unparsed;
}

void rway_filter_unparsed_counts(const struct rway_filter *filter, struct rway_unparsed_counts *out)
{
    *out = (struct rway_unparsed_counts){0};
    for (uint32_t reader = 0; reader < RWAY_READERS_MAX; reader++)
        for (uint32_t cause = 0; cause < RWAY_MALFORMED_CAUSES; cause++) {
            out->dropped[cause] += rway_read_once(&filter->readers[reader].unparsed.dropped[cause]);
            out->passed[cause] += rway_read_once(&filter->readers[reader].unparsed.passed[cause]);
        }
}

int rway_filter_reader_add(struct rway_filter *filter)
{
    int reader = -1;

    pthread_mutex_lock(&filter->lock);
    if (~filter->readers_taken != 0) {
        reader = __builtin_ctzll(~filter->readers_taken);
        filter->readers_taken |= 1ull << reader;
    }
    pthread_mutex_unlock(&filter->lock);
    return reader;
}

/* The lock also hands the reader's counts on to whoever gets its number next. */
void rway_filter_reader_remove(struct rway_filter *filter, uint32_t reader)
{
    rway_filter_leave(filter, reader);
    pthread_mutex_lock(&filter->lock);
    filter->readers_taken &= ~(1ull << reader);
    pthread_mutex_unlock(&filter->lock);
}

const struct rway_filter_table *rway_filter_enter(struct rway_filter *filter, uint32_t reader,
                                                  struct rway_rule_counts **counts)
{
    uint64_t *seen = &filter->readers[reader].seen;
    /* Acquire pairs with the release of epoch in replace: what shows an epoch loads its table or a later one. */
    uint64_t epoch = __atomic_load_n(&filter->epoch, __ATOMIC_ACQUIRE);
    const struct rway_filter_table *table;

    /*
     * Sequentially consistent, as is the load below, against the store of current and the load of seen in replace:
     * either replace sees this reader, or this reader sees the new table. It also releases all use of the old table,
     * rules and counts, to the acquire in has_passed. Not needed while seen stays: replace goes on waiting.
     */
    if (__atomic_load_n(seen, __ATOMIC_RELAXED) != epoch)
        __atomic_store_n(seen, epoch, __ATOMIC_SEQ_CST);
    table = __atomic_load_n(&filter->current, __ATOMIC_SEQ_CST);
    *counts = rway_filter_table_row(table, reader);
    return table;
}

void rway_filter_leave(struct rway_filter *filter, uint32_t reader)
{
    /* Release pairs with the acquire in has_passed: all use of the table is over. */
    __atomic_store_n(&filter->readers[reader].seen, AWAY, __ATOMIC_RELEASE);
}

static bool has_passed(struct rway_filter *filter, uint32_t reader, uint64_t epoch)
{
    /* Sequentially consistent, so acquire too: see enter and leave for what it pairs with. */
    uint64_t seen = __atomic_load_n(&filter->readers[reader].seen, __ATOMIC_SEQ_CST);

    return seen == AWAY || seen >= epoch;
}

static bool all_have_passed(struct rway_filter *filter, uint64_t epoch)
{
    for (uint32_t reader = 0; reader < RWAY_READERS_MAX; reader++)
        if (!has_passed(filter, reader, epoch))
            return false;
    return true;
}

static bool wait_for_readers(struct rway_filter *filter, uint64_t epoch)
{
    const struct timespec look_again = {.tv_nsec = LOOK_AGAIN_US * 1000};
    struct timespec start;
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        if (all_have_passed(filter, epoch))
            return true;
        nanosleep(&look_again, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < WAIT_MS);
    return all_have_passed(filter, epoch);
}

static void add_counts(struct rway_rule_counts *to, const struct rway_rule_counts *from)
{
    /* Relaxed pairs with rway_count_frame: whole words, of a moment ago; after has_passed they are final. */
    to->frames += __atomic_load_n(&from->frames, __ATOMIC_RELAXED);
    to->bytes += __atomic_load_n(&from->bytes, __ATOMIC_RELAXED);
}

/* All that was counted under one rule of a table; index count is its default. */
static struct rway_rule_counts rule_total(const struct rway_filter_table *table, uint32_t index)
{
    struct rway_rule_counts total = table->carried[index];

    for (uint32_t reader = 0; reader < RWAY_READERS_MAX; reader++)
        add_counts(&total, &rway_filter_table_row(table, reader)[index]);
    return total;
}

/* The rule of that name: most often where it was before. Returns count when there is none. */
static uint32_t find_rule(const struct rway_filter_table *table, const char *name, uint32_t likely)
{
    uint32_t index = 0;

    if (likely < table->count && strcmp(table->names[likely], name) == 0)
        return likely;
    while (index < table->count && strcmp(table->names[index], name) != 0)
        index++;
    return index;
}

/* Add what a table counted to sums, which has the order of the table in force. Rules that are gone are forgotten. */
static void carry_over(const struct rway_filter_table *from, const struct rway_filter_table *current,
                       struct rway_rule_counts *sums)
{
    struct rway_rule_counts total = rule_total(from, from->count);

    add_counts(&sums[current->count], &total);
    for (uint32_t index = 0; index < from->count; index++) {
        uint32_t to = find_rule(current, from->names[index], index);

        if (to == current->count)
            continue;
        total = rule_total(from, index);
        add_counts(&sums[to], &total);
    }
}

/* Free the retired tables that nobody can hold. Their counts are final then, and go to the table in force. */
static void reclaim(struct rway_filter *filter)
{
    struct rway_filter_table **link = &filter->retired;

    while (*link) {
        struct rway_filter_table *table = *link;

        if (!all_have_passed(filter, table->retired_at)) {
            link = &table->next;
            continue;
        }
        carry_over(table, filter->current, filter->current->carried);
        *link = table->next;
        rway_filter_table_free(table);
    }
}

int rway_filter_replace(struct rway_filter *filter, struct rway_filter_table *table)
{
    struct rway_filter_table *old;
    bool passed;

    pthread_mutex_lock(&filter->lock);
    old = filter->current;
    old->retired_at = filter->epoch + 1;
    table->generation = old->generation + 1;
    old->next = filter->retired;
    filter->retired = old;
    /* Before the epoch, so that a reader that shows the new epoch cannot load the old table: see enter. */
    __atomic_store_n(&filter->current, table, __ATOMIC_SEQ_CST);
    __atomic_store_n(&filter->epoch, old->retired_at, __ATOMIC_RELEASE);
    passed = wait_for_readers(filter, old->retired_at);
    reclaim(filter);
    pthread_mutex_unlock(&filter->lock);
    return passed ? 0 : -1;
}

uint32_t rway_filter_counts(struct rway_filter *filter, struct rway_rule_counts *out, uint32_t max)
{
    struct rway_rule_counts sums[RWAY_RULES_MAX + 1] = {{0}};
    const struct rway_filter_table *current;
    uint32_t count;

    pthread_mutex_lock(&filter->lock);
    reclaim(filter);
    current = filter->current;
    count = current->count + 1;
    for (uint32_t index = 0; index < count; index++)
        sums[index] = rule_total(current, index);
    for (const struct rway_filter_table *table = filter->retired; table; table = table->next)
        carry_over(table, current, sums);
    pthread_mutex_unlock(&filter->lock);
    memcpy(out, sums, sizeof(*out) * (max < count ? max : count));
    return count;
}
