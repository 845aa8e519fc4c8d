"""Worker processes that compute the results of a plan and return them in its order."""

import atexit
import signal
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

Input = TypeVar("Input")
Result = TypeVar("Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class _Task(Dataset[Any], Generic[Input, Result]):
    def __init__(self, work: Callable[[Input], Result]) -> None:
        self.work = work

    def __getitems__(self, key: Input) -> Result | ValueError:
        """A user's mistake comes back as a value: the loader would add a worker's traceback."""
        try:
            return self.work(key)
        except ValueError as error:
            return error


def in_order(
    work: Callable[[Input], Result], plan: Iterator[Input], workers: int, ahead: int
) -> Generator[Result, None, None]:
    """`work(input)` for each input of `plan`, which may be endless, in `workers` processes (0: in
    this process).

    The workers are about `ahead` inputs ahead, and end when the generator is closed. Raises the
    ValueError of the first input that fails.
    """
    loader: DataLoader[Any] = DataLoader(
        _Task(work),
        batch_sampler=plan,  # type: ignore[arg-type]  # any iterable works
        num_workers=workers,
        prefetch_factor=max(2, -(-ahead // workers)) if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # the global one belongs to the run, and is resumed
    )
    # blocked while workers start: a new worker does not ignore signals yet
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        ready = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _open.add(ready)
    try:
        for result in ready:
            if isinstance(result, ValueError):
                raise result
            yield result
    finally:
        _end(ready)


_open: weakref.WeakSet[Any] = weakref.WeakSet()  # loaders whose workers may be running


def _end(ready: Any) -> None:
    """Ends the workers now. torch would end them when the loader is collected, which an exception's
    traceback delays, or at exit by SIGTERM, which these workers ignore."""
    if ready in _open and get_worker_info() is None:  # a forked worker holds a copy
        _open.discard(ready)
        if hasattr(ready, "_shutdown_workers"):  # a loader without workers has none
            ready._shutdown_workers()


@atexit.register
def _end_all() -> None:
    for ready in list(_open):
        _end(ready)


def _ignore_signals(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach every process: the main one saves, then ends workers
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)


def _unchanged(piece: Any) -> Any:
    return piece
