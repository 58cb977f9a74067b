/* Two threads write one word without order, so that the tests can show that TSan is at work. */
#include <pthread.h>
#include <stddef.h>

static int word;

static void *write_word(void *unused)
{
    for (int i = 0; i < 100000; i++)
        word += i;
    return unused;
}

int main(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, write_word, NULL))
        return 0;
    write_word(NULL);
    pthread_join(thread, NULL);
    return 0;
}
