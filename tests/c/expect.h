/* EXPECT for tests of many small facts: it says which are not so, counts them in `failures`, and goes on. */
#ifndef EXPECT_H
#define EXPECT_H

#include <stdio.h>

static int failures;

#define EXPECT(fact)                                                                \
    do {                                                                            \
        if (!(fact)) {                                                              \
            printf("%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #fact); \
            failures++;                                                             \
        }                                                                           \
    } while (0)

#endif
