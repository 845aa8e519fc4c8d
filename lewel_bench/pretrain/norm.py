"""Batch norm whose statistics span a stated number of images, on 1 device or many.

A published batch-norm size is a number of images (256 over 8 GPUs: 32). Here it is an argument, so
a result does not depend on how many devices share the work. N counts whatever one image brings:
pixels in (B, C, H, W), tokens in (B, T, C).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from lewel_bench.pretrain.distributed import rank, world


class BatchNorm(_BatchNorm):
    """Batch norm of feature maps (B, C, H, W); the state dict is that of `nn.BatchNorm2d`.

    In training, `group` images (None: the whole global batch) share their statistics: consecutive
    groups of this process's images, or equal parts from consecutive ranks. Running statistics move
    once a call, to the mean over the groups. Raises ValueError where groups do not fit.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, channels: int, group: int | None = None) -> None:
        super().__init__(channels)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), normalised per channel and group of images."""
        return self._normalise(x, len(x))

    def _normalise(self, x: Tensor, images: int) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        self.num_batches_tracked.add_(1)
        groups, ranks = self._layout(images)
        if ranks > 1:
            shared = _Shared.apply(x, self.weight, self.bias, self.eps, ranks)
            y: Tensor = shared[0]
            mean.lerp_(shared[1].to(mean.dtype), self.momentum)
            var.lerp_(shared[2].to(var.dtype), self.momentum)
            return y
        if groups == 1:
            return batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        means, variances = mean.repeat(groups, 1), var.repeat(groups, 1)
        y = torch.cat(
            [
                batch_norm(part, m, v, self.weight, self.bias, True, self.momentum, self.eps)
                for part, m, v in zip(x.chunk(groups), means, variances, strict=True)
            ]
        )
        mean.copy_(means.mean(0))
        var.copy_(variances.mean(0))
        return y

    def _layout(self, images: int) -> tuple[int, int]:
        """Groups on this rank, and ranks that share a group; one of the two is 1."""
        group = self.group or images * world()
        if images % group == 0:
            return images // group, 1
        if group % images == 0 and images * world() % group == 0:
            return 1, group // images
        raise ValueError(
            f"batch norm over groups of {group} images does not fit {images} images on each of "
            f"{world()} processes: choose a multiple of {group}, or a divisor of it such that "
            f"{images} x {world()} is a multiple"
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, group={self.group}"


class TokenNorm(BatchNorm):
    """`BatchNorm` of tokens (B, ..., C): all tokens of an image count, channels come last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) -> (B, ..., C), normalised per channel."""
        return self._normalise(x.reshape(-1, x.shape[-1]), len(x)).view(x.shape)


class RunningStatistics:
    """Makes batch-norm running statistics of `module` independent of micro-batches.

    Around the micro-batches of one step: `start()`, then `add(share)` after each backward pass with
    its share of the batch, then `finish()`. A running statistic is linear in the batch statistics,
    so the mean over micro-batches that all start at the same value is that of the whole batch.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
        self.values = [b for m in norms for b in (m.running_mean, m.running_var)]
        self.counts = [m.num_batches_tracked for m in norms]

    @torch.no_grad()
    def start(self) -> None:
        """Remember the running statistics before the first micro-batch."""
        self._values = torch._foreach_mul(self.values, 1.0)
        self._counts = torch._foreach_add(self.counts, 0)
        self._sums = [torch.zeros_like(b) for b in self.values]

    @torch.no_grad()
    def add(self, share: float) -> None:
        """Collect those that a micro-batch of `share` of the batch left, and restore the others."""
        torch._foreach_add_(self._sums, self.values, alpha=share)
        torch._foreach_copy_(self.values, self._values)
        self._last = torch._foreach_add(self.counts, 0)
        torch._foreach_copy_(self.counts, self._counts)

    @torch.no_grad()
    def finish(self) -> None:
        """Set the running statistics to those of the whole batch."""
        torch._foreach_copy_(self.values, self._sums)
        torch._foreach_copy_(self.counts, self._last)


class _Shared(torch.autograd.Function):
    """Batch norm over `ranks` consecutive ranks: one exchange forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        full = _full(x)
        var, mean = torch.var_mean(full, _all_but_channels(x), correction=0)  # (C,), (C,)
        means, variances = _exchange(torch.stack([mean, var]), ranks).unbind(1)  # (ranks, C)
        mean = means.mean(0)
        var = (variances + (means - mean) ** 2).mean(0)
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.ranks = ranks
        gain = scale * weight
        y = torch.addcmul(_wide(bias - mean * gain, x), full, _wide(gain, x)).to(x.dtype)
        count = x.numel() // x.shape[1] * ranks
        unbiased = var * (count / (count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        dims, grad_ = _all_but_channels(x), _full(grad)
        x_hat = (_full(x) - _wide(mean, x)) * _wide(scale, x)
        own = torch.stack([grad_.sum(dims), (grad_ * x_hat).sum(dims)])  # (2, C)
        count = x.numel() // x.shape[1] * ctx.ranks
        mean_grad, mean_product = (_exchange(own, ctx.ranks).sum(0) / count).unbind(0)
        centred = grad_ - _wide(mean_grad, x) - x_hat * _wide(mean_product, x)
        grad_x = (centred * _wide(scale * weight, x)).to(x.dtype)
        return grad_x, own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _exchange(mine: Tensor, ranks: int) -> Tensor:
    """`mine` of every rank of this rank's group: (ranks, *mine.shape).

    A sum over a table in which every rank fills its own row: needs no process groups, and gloo and
    nccl both have it.
    """
    table = mine.new_zeros(world(), *mine.shape)
    table[rank()] = mine
    dist.all_reduce(table)
    first = rank() // ranks * ranks
    return table[first : first + ranks]


def _all_but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(1, -1, *(1,) * (x.dim() - 2))


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
