"""When a training loop logs, saves and stops: the bookkeeping that all loops share."""

import time

from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.report import Stop, Stopped

LOG_EVERY_S = 1.0  # a log fetches losses from the device
ASK_EVERY = 20  # steps between questions to the other ranks, each a collective


class Pacer:
    """Decides after each step what is due.

    With several ranks, saving and stopping need all of them: they ask one another at the same
    steps only, every ASK_EVERY and the last. A single process acts after any step.
    """

    def __init__(self, machine: Machine, stop: Stop, step: int = 0) -> None:
        self.machine, self.stop, self.stopping = machine, stop, False
        self.restart_save()
        self.restart_log(step)

    def restart_log(self, step: int) -> None:
        """Count steps and seconds for the next log from now, after `step` steps."""
        self.logged, self.logged_at = step, time.perf_counter()

    def log_is_due(self) -> bool:
        """Whether the last log is more than `LOG_EVERY_S` seconds old."""
        return time.perf_counter() - self.logged_at > LOG_EVERY_S

    def since_log(self, step: int) -> tuple[int, float]:
        """The steps and the seconds since the last log, which is now this one."""
        steps, seconds = step - self.logged, time.perf_counter() - self.logged_at
        self.restart_log(step)
        return steps, max(seconds, 1e-9)

    def asks(self, step: int, *, last: bool = False) -> bool:
        """Whether the ranks ask one another after `step` steps."""
        return last or distributed.world() == 1 or step % ASK_EVERY == 0

    def stop_requested(self) -> bool:
        """Whether any rank was asked to stop; every rank must ask."""
        return distributed.any_rank(self.stop(), self.machine.device)

    def save_is_due(self, *, now: bool = False) -> bool:
        """Whether it is time to save, a stop was requested, or `now`; every rank must ask."""
        self.stopping = self.stop_requested()
        late = time.perf_counter() - self.saved_at >= self.machine.save_every_s
        return now or self.stopping or distributed.any_rank(late, self.machine.device)

    def restart_save(self) -> None:
        """Count the seconds to the next save from now; for saves that are not `save_is_due`."""
        self.saved_at = time.perf_counter()

    def saved(self, position: str) -> None:
        """Note that the state at `position` is saved. Raises Stopped if a stop was requested."""
        self.restart_save()
        if self.stopping:
            distributed.wait()  # a rank that leaves early has the others killed before they saved
            raise Stopped(f"saved at {position}")
