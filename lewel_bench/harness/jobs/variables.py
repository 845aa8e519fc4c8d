"""Environment variables that a `run` sets for the processes that it starts."""

COMMAND = "LEWEL_BENCH_COMMAND"  # its command line, which records name
