"""The programs that ``benchmarks.fit_speed`` times, each run in a process of its own."""
