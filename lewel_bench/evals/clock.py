"""How long an evaluation has taken over all of its attempts."""

import time
from collections.abc import Mapping
from typing import Any

from lewel_bench.pretrain.report import Report


class Clock:
    """Runs from when it is made; a checkpoint holds its `seconds`, and `resume` sets it to them.

    So every step counts once, as in a pre-training: not what an attempt did after its last
    checkpoint, nor what the next one does to get there again.
    """

    def __init__(self) -> None:
        self.go_on(0.0)

    def go_on(self, seconds: float) -> None:
        """Run on from `seconds`."""
        self._before, self._since = seconds, time.perf_counter()

    def resume(self, state: Mapping[str, Any]) -> float:
        """Run on from the seconds that a checkpoint holds (0 where it was written before they were
        kept), which are returned."""
        seconds = float(state.get("seconds", 0.0))
        self.go_on(seconds)
        return seconds

    def seconds(self) -> float:
        return round(self._before + time.perf_counter() - self._since, 3)

    def heard(self, report: Report) -> Report:
        """`report`, by whose "resumed" this clock is set too: a runner may be in another Python."""

        def hear(event: str, /, **fields: Any) -> None:
            if event == "resumed":
                self.go_on(fields["seconds"])
            report(event, **fields)

        return hear
