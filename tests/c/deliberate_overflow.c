/* Reads past the end of an allocation, so that the tests can show that ASan is at work. */
#include <stdlib.h>

int main(int argc, char **argv)
{
    (void)argv;
    unsigned char *volatile bytes = calloc(1, 64); /* volatile: else UBSan knows the size and speaks first */
    int past = bytes ? bytes[63 + argc] : 0;
    free(bytes);
    return past;
}
