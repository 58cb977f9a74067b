/* Shifts by more bits than there are, so that the tests can show that UBSan is at work. */

int main(int argc, char **argv)
{
    (void)argv;
    return argc << (31 + argc);
}
