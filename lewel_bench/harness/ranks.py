"""`torchrun` for the processes of one job, whose failures the job's folder tells:
`python -m lewel_bench.harness.ranks --standalone --nproc-per-node=N -m MODULE ARGUMENTS`."""

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """The exit code: 0 where every rank ended with 0, 1 where one did not and the others were
    ended, 128 + n after signal n."""
    logging.disable(logging.CRITICAL)  # of the launcher alone: a table of exit codes
    try:
        run.main(sys.argv[1:])
    except ChildFailedError:
        return 1
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
