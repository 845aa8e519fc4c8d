"""Whether jobs fit their data, their processes and their device: what would end a job at its start
is refused before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocol import ForwardPass
from lewel_bench.harness.plan.datasets import shapes_id
from lewel_bench.harness.plan.plan import Job
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.recipe import Recipe, shares
from lewel_bench.pretrain.shapes_revision import KINDS, Counts


class Place(NamedTuple):
    """What a job runs on: how many processes, on a CPU or not, and the images of a forward pass."""

    processes: int
    cpu: bool
    micro_batch: int | None = None


def check_machine(jobs: Sequence[Job], place: Callable[[Job], Place]) -> None:
    """Raise ValueError naming the first job that cannot be shared by its processes or run on its
    device, and the setting to change; no data are read."""
    for job in _each_kind(jobs):
        with _named(job):
            if job.recipe:
                _recipe(job.recipe, place(job))
            elif job.protocol:
                on = place(job)
                job.protocol.check_machine(on.processes, on_cpu=on.cpu)


def check_data(jobs: Sequence[Job], place: Callable[[Job], Place]) -> None:
    """Raise ValueError naming the first job that asks for more than its data have, and the setting
    to change. Generated images that are not made yet are judged by their known numbers."""
    for job in _each_kind(jobs):
        with _named(job):
            if job.recipe:
                _enough(job, job.recipe)
            elif job.protocol:
                on = place(job)
                job.protocol.check_batch(_trained_images(job), on.processes, on.micro_batch)


def _each_kind(jobs: Sequence[Job]) -> list[Job]:
    """One job of each kind that computes: seeds and candidates ask for the same images."""
    kinds = {(j.data.root, j.recipe_name, j.kind, j.protocol and j.protocol.name): j for j in jobs}
    return [job for job in kinds.values() if not job.is_selection]


@contextmanager
def _named(job: Job) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from None


def _recipe(recipe: Recipe, place: Place) -> None:
    local, micro = shares(recipe, place.processes, place.micro_batch)
    if methods.settings_of(recipe).whole_batch and micro < local:
        raise ValueError(
            f"micro-batch {micro}: {recipe.method} compares all images of a batch with each other "
            f"and needs the {local} images of a process in one forward pass: use more processes, "
            "or a smaller batch"
        )


def _enough(job: Job, recipe: Recipe) -> None:
    count = _training_images(job)
    if count < recipe.batch:
        smaller = max(1, count // 4)
        fix = f"--set batch={smaller}"
        if recipe.bn_group and smaller % recipe.bn_group:
            fix += f" --set bn_group={smaller}"
        raise ValueError(
            f"batch {recipe.batch} is more than the {count} training images of {job.data.name}: "
            f"set a smaller batch, such as {fix}"
        )
    try:
        methods.settings_of(recipe).check_images(count)
    except ValueError as error:
        raise ValueError(f"{job.data.name}: {error}") from None


def _training_images(job: Job) -> int:
    if not is_at_hand(job.data):
        return Counts().training(job.data.layout, "")
    from lewel_bench.evals import splits

    return len(splits.read(job.data, "train"))


def _trained_images(job: Job) -> int:
    """How many images an evaluation trains on. Raises ValueError where its splits cannot be made
    or cannot be learnt from."""
    assert job.protocol is not None
    final = job.kind == "final"
    if is_at_hand(job.data):
        splits = job.protocol.splits(job.data, final=final)
        splits.check()
        return len(splits.train)
    total = Counts().training(job.data.layout, job.protocol.runner)
    return job.protocol.training_count(total, KINDS, final=final)


def is_at_hand(data: Dataset) -> bool:
    """Whether the images can be read; generated ones may not be made yet."""
    return data.id != shapes_id() or Path(data.root).exists()


def half_micro_batch(job: Job, processes: int, micro_batch: int | None, times: int = 1) -> int:
    """Half (a quarter, …) of the images of a forward pass of `job`. Raises ValueError saying why
    the result would be another, and what helps where memory is short."""
    together = _forward_pass(job)
    most = together.batch // processes
    if together.limit:
        most = min(most, together.limit)
    whole = min(micro_batch or most, most)
    micro = max(1, whole >> times)
    group, reason = together.bn_group, ""
    if together.undivided:
        reason = f"the {whole} images of a process are needed in one forward pass"
    elif group and (micro % group or most % micro):
        reason = f"batch norm takes its statistics over {group} images in one forward pass"
    if whole == 1:
        reason = "a forward pass has one image already"
    if reason:
        raise ValueError(
            f"half the micro-batch of {whole} is not possible: {reason}. More processes than "
            f"{processes} share a batch into smaller parts; else take GPUs with more memory"
        )
    return micro


def _forward_pass(job: Job) -> ForwardPass:
    if job.protocol:
        return job.protocol.forward_pass()
    assert job.recipe is not None
    recipe = job.recipe
    undivided = methods.settings_of(recipe).whole_batch
    return ForwardPass(recipe.batch, bn_group=recipe.bn_group or recipe.batch, undivided=undivided)


def memory_advice(job: Job, processes: int, micro_batch: int | None) -> str:
    """What helps a job that ran out of memory."""
    try:
        smaller = half_micro_batch(job, processes, micro_batch)
    except ValueError as error:
        return str(error)
    return f"--micro-batch {smaller} takes less memory and gives the same result"
