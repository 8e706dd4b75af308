"""Benchmarks: ours and the rival interleaved in one run; the ratio with n and spread."""
