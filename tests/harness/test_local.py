"""Jobs of several processes, as their parent sees them."""

from pathlib import Path

import pytest
from finished import SHAPES

from lewel_bench.harness import local, plan, signals
from lewel_bench.harness.datasets import Datasets
from lewel_bench.harness.site import MachineSettings, Site
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.report import Stopped, silent


def test_a_stop_before_the_processes_have_begun_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, needed=False)
    jobs = plan.chain(RECIPES["lewel_m_200ep"], [], 0, SHAPES, datasets)
    settings = MachineSettings(device="cpu", processes=2)
    runner = local.Runner(jobs, tmp_path, settings, lambda job: silent, print)
    asked = []

    def watched(command: list[str], environment: dict[str, str]) -> int:
        asked.append(True)  # a signal ends torchrun, whose ranks still import
        return 1

    monkeypatch.setattr(local, "_watched", watched)
    monkeypatch.setattr(signals, "asked_to_stop", lambda: bool(asked))
    with pytest.raises(Stopped, match="before its processes had begun"):
        runner.run()
    assert not runner.failed
