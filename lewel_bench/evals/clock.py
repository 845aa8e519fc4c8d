"""The seconds of an evaluation over all of its attempts."""

import time
from collections.abc import Mapping
from typing import Any

from lewel_bench.pretrain.report import Report


class Clock:
    """Runs from its creation; a checkpoint holds its `seconds`, and `resume` sets it to them.

    So every step counts once, as in pre-training: the work of an attempt after its last checkpoint,
    which is lost and repeated, is not counted twice.
    """

    def __init__(self) -> None:
        self.restart(0.0)

    def restart(self, seconds: float) -> None:
        """Count from `seconds` on."""
        self._before, self._since = seconds, time.perf_counter()

    def resume(self, state: Mapping[str, Any]) -> float:
        """Count on from the seconds in a checkpoint, which are returned (0 for an older checkpoint
        without them)."""
        seconds = float(state.get("seconds", 0.0))
        self.restart(seconds)
        return seconds

    def seconds(self) -> float:
        """Seconds of this and all earlier attempts, to the millisecond."""
        return round(self._before + time.perf_counter() - self._since, 3)

    def follow(self, report: Report) -> Report:
        """`report`, whose "resumed" events also set this clock: a runner may be in another process
        and have a clock of its own."""

        def follow_event(event: str, /, **fields: Any) -> None:
            if event == "resumed":
                self.restart(fields["seconds"])
            report(event, **fields)

        return follow_event
