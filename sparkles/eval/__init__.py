"""Benchmarks: items, prompts, scores, statistics and the files that a run leaves."""
