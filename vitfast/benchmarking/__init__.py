"""Benchmarks: several implementations timed in one run, interleaved, after their results have been compared."""
