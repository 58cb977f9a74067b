"""Benchmarks, each beside the peer or the kernel path that does the same work in the same run."""
