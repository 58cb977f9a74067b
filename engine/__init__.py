"""Threads that move frames: a loop and what it runs. It knows no filter and no table."""
