"""Learning-rate and momentum schedules as functions of the step."""

from math import cos, pi

from lewel_bench.pretrain.recipe import Schedule


def lr_at(lr: float, schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of step `step` (0-based).

    Warm-up is linear per step and reaches `lr` at its last step; then a cosine that moves once per
    epoch (MoCo's and EMAN's code: the last epoch is not quite at its end) or per step (BYOL), or
    steps down by ten (InstDisc).
    """
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        begin = schedule.start
        return lr * (begin * warmup + (1 - begin) * (step + 1)) / warmup
    if schedule.decay_at:
        at_epochs = tuple(round(share * epochs) for share in schedule.decay_at)
        return step_decay(lr, step // steps_per_epoch, at_epochs)
    if schedule.cosine_per == "epoch":
        at, start, end = float(step // steps_per_epoch), schedule.warmup_epochs, float(epochs)
    else:
        at, start, end = float(step), warmup, float(epochs * steps_per_epoch)
    cosine = 0.5 * (1 + cos(pi * (at - start) / (end - start)))
    return lr * (schedule.end + (1 - schedule.end) * cosine)


def step_decay(lr: float, epoch: int, milestones: tuple[int, ...], gamma: float = 0.1) -> float:
    """`lr` times `gamma` for every milestone that `epoch` (0-based) has reached."""
    return lr * gamma ** sum(epoch >= m for m in milestones)


def cosine_momentum(start: float, step: int, steps: int) -> float:
    """BYOL's momentum of the target: from `start` at step 0 towards 1 at step `steps`.

    1 - (1 - start)(cos(pi step / steps) + 1) / 2 (arXiv 2006.07733, Section 3.2).
    """
    return 1 - (1 - start) * (cos(pi * step / steps) + 1) / 2
