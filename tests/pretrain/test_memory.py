import torch

from lewel_bench.pretrain import memory


def test_the_peak_is_since_the_start_and_holds_what_was_freed() -> None:
    ballast = torch.ones(64 << 20, dtype=torch.uint8)
    del ballast  # before the start: not counted
    peak = memory.watch(torch.device("cpu"))
    before = peak()
    assert before is not None
    block = torch.ones(48 << 20, dtype=torch.uint8)
    del block
    after = peak()
    assert after is not None and 40 << 20 < after - before < 64 << 20


def test_where_nothing_measures_it_there_is_no_figure(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    assert memory.watch(torch.device("cpu"))() is None
