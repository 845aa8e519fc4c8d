"""Many linear classifiers trained together on the same features, each as if it were alone.

Cross-entropy of a linear map has its gradient in closed form, so no autograd is needed:
d loss / d W = (softmax(x W^T + b) - onehot)^T x / B.

Shapes: G heads, B images, D features, C classes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

LARC_EPS = 1e-8  # apex.parallel.LARC's default


class Heads:
    """G linear classifiers in fp32 with their momentum, each with its (lr, weight decay).

    All start from the same N(0, init_std) weight, drawn from `seed`, and zero bias. A head whose
    loss is not finite is frozen from that step on, without effect on the others. `step` never
    waits for the device.
    """

    def __init__(
        self,
        grid: Sequence[tuple[float, float]],
        features: int,
        classes: int,
        *,
        optimizer: Literal["sgd", "lars"],
        momentum: float,
        trust: float,
        init_std: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        initial = torch.empty(classes, features).normal_(
            0, init_std, generator=torch.Generator().manual_seed(seed)
        )
        self.optimizer, self.momentum, self.trust = optimizer, momentum, trust
        self.lr, self.weight_decay = torch.tensor(grid, device=device, dtype=dtype).unbind(
            1
        )  # (G,)
        self.decays = any(decay for _, decay in grid)
        self.weight = initial.to(device, dtype).repeat(len(grid), 1, 1)  # (G, C, D)
        self.bias = self.weight.new_zeros(len(grid), classes)  # (G, C)
        self.weight_velocity = torch.zeros_like(self.weight)
        self.bias_velocity = torch.zeros_like(self.bias)
        self.steps = 0
        self.diverged_at = torch.full((len(grid),), -1, device=device)  # (G,) step, -1: never
        self.loss_sum = self.lr.new_zeros(len(grid))  # (G,) since `mean_loss`

    def logits(self, x: Tensor) -> Tensor:
        """x (B, D) -> (G, B, C)"""
        x = x.expand(len(self.lr), -1, -1)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)

    def step(self, x: Tensor, labels: Tensor, factor: float = 1.0) -> None:
        """One optimizer step of every living head on features x (B, D), labels (B,), at `factor`
        times its learning rate."""
        slopes, loss = self._loss(x, labels)
        finite = loss.isfinite()
        alive = (self.diverged_at < 0) & finite
        self.diverged_at.masked_fill_((self.diverged_at < 0) & ~finite, self.steps)
        self.loss_sum += loss.masked_fill(~alive, 0)
        slopes.masked_fill_(~alive[:, None, None], 0)
        lr = self.lr.masked_fill(~alive, 0) * factor
        decay = self.weight_decay.masked_fill(~alive, 0)
        if self.optimizer == "sgd":
            self._sgd(x, slopes, lr, decay)
        else:
            self._lars(x, slopes, lr, decay)
        self.steps += 1

    def mean_loss(self, steps: int) -> list[float]:
        """Mean loss of each head over the last `steps` steps; waits for the device."""
        mean: list[float] = (self.loss_sum / steps).tolist()
        self.loss_sum.zero_()
        return mean

    def divergence(self) -> list[int | None]:
        """The step at which each head diverged, None if it has not; waits for the device."""
        broken = ~(self.weight.isfinite().all(-1) & self.bias.isfinite()).all(-1)
        self.diverged_at.masked_fill_((self.diverged_at < 0) & broken, self.steps)
        return [None if at < 0 else at for at in self.diverged_at.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """The state that training resumes from."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        for name in _STATE:
            setattr(self, name, state[name])

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """d loss / d logits (G, B, C) and loss (G,), both of the mean over the batch."""
        log_p = self.logits(x).log_softmax(-1)  # (G, B, C)
        index = labels.expand(len(self.lr), -1)[..., None]  # (G, B, 1)
        loss = -log_p.gather(-1, index).mean((1, 2))
        slopes = log_p.exp_()
        slopes.scatter_add_(-1, index, slopes.new_full((), -1.0).expand_as(index))
        return slopes.div_(len(x)), loss

    def _sgd(self, x: Tensor, slopes: Tensor, lr: Tensor, decay: Tensor) -> None:
        """As torch.optim.SGD: v <- momentum v + g + wd w; w <- w - lr v."""
        x = x.expand(len(slopes), -1, -1)
        self.weight_velocity.baddbmm_(slopes.mT, x, beta=self.momentum)
        self.bias_velocity.mul_(self.momentum).add_(slopes.sum(1))
        if self.decays:
            self.weight_velocity.addcmul_(self.weight, decay[:, None, None])
            self.bias_velocity.addcmul_(self.bias, decay[:, None])
        self.weight.addcmul_(self.weight_velocity, lr[:, None, None], value=-1)
        self.bias.addcmul_(self.bias_velocity, lr[:, None], value=-1)

    def _lars(self, x: Tensor, slopes: Tensor, lr: Tensor, decay: Tensor) -> None:
        """apex LARC with clip off, on weight and bias alike, as SimSiam's probe:
        g <- (g + wd w) trust |w| / (|g| + wd |w| + eps), untouched where |w| or |g| is 0."""
        gradient = torch.bmm(slopes.mT, x.expand(len(slopes), -1, -1))
        for w, v, g in (
            (self.weight, self.weight_velocity, gradient),
            (self.bias, self.bias_velocity, slopes.sum(1)),
        ):
            rest = (-1,) + (1,) * (w.ndim - 1)
            w_norm = torch.linalg.vector_norm(w.flatten(1), dim=1)
            g_norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
            adapted = (w_norm > 0) & (g_norm > 0)
            ratio = self.trust * w_norm / (g_norm + decay * w_norm + LARC_EPS)
            ratio = ratio.where(adapted, 1.0)
            if self.decays:
                g = g.addcmul(w, decay.where(adapted, 0.0).view(rest))
            v.mul_(self.momentum).addcmul_(g, ratio.view(rest))
            w.addcmul_(v, lr.view(rest), value=-1)


_STATE = (
    "weight",
    "bias",
    "weight_velocity",
    "bias_velocity",
    "steps",
    "diverged_at",
    "loss_sum",
)
