"""Environment variables that a `run` sets for the processes that it starts."""

COMMAND = "LEWEL_BENCH_COMMAND"  # its command line, which records name
BEGAN = "LEWEL_BENCH_BEGAN"  # the time at which it began
