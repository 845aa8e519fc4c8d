"""`torchrun` for the processes of one job, whose failures the job's folder tells:
`python -m lewel_bench.harness.jobs.ranks --standalone --nproc-per-node=N -m MODULE ARGUMENTS`."""

import logging
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """The exit code: 0 where every rank ended with 0, 128 + n where signal n ended the first that
    failed or asked all to stop, else 1."""
    logging.disable(logging.CRITICAL)  # of the launcher alone: a table of exit codes
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as failed:
        by_itself = [
            (rank.timestamp, rank.exitcode)
            for rank in failed.failures.values()
            if rank.exitcode != -signal.SIGTERM  # by which torchrun ends the others
        ]
        _, first = min(by_itself, default=(0, 1))
        return 128 - first if first < 0 else 1
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
