import mmap

import torch

from lewel_bench.pretrain import memory


def _hold_and_free(size: int) -> None:
    """Pages fresh from the kernel: an allocator may reuse what earlier tests left resident."""
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1


def test_the_peak_is_since_the_start_and_holds_what_was_freed() -> None:
    _hold_and_free(64 << 20)  # before the start: not counted
    peak = memory.watch(torch.device("cpu"))
    before = peak()
    assert before is not None
    _hold_and_free(48 << 20)
    after = peak()
    assert after is not None and 40 << 20 < after - before < 64 << 20


def test_where_nothing_measures_it_there_is_no_figure(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    assert memory.watch(torch.device("cpu"))() is None
