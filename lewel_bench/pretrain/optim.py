"""Optimizers: torch's SGD, and LARS as EMAN and LEWEL use it, without host synchronisation."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from lewel_bench.pretrain.recipe import Optimizer


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888, Algorithm 1).

    buf <- momentum buf + lr local (g + wd w);  w <- w - buf, with
    local = trust |w| / (|g| + wd |w|) for groups with `adapt`, else 1.
    The learning rate enters before the momentum buffer, as in EMAN's and LEWEL's optimizer; BYOL's
    and Barlow Twins' apply it after. Weights that are all zero take a plain step, as with apex's
    LARC and SimCLR's; EMAN's leaves them, but gives LARS none such. Under a GradScaler a
    step with infinite gradients is skipped on the device, without asking the host.
    """

    _step_supports_amp_scaling = True  # read by torch.amp.GradScaler
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} {value} is negative: it must be at least 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; `closure` re-evaluates the loss as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights, _unscaled(weights, scale, found_inf), found_inf)
        return loss

    def _update(
        self, group: dict[str, Any], w: list[Tensor], g: list[Tensor], found_inf: Tensor | None
    ) -> None:
        wd, lr = group["weight_decay"], group["lr"]
        buffers = [self._buffer(p) for p in w]
        update = list(torch._foreach_add(g, w, alpha=wd)) if wd else [x.clone() for x in g]
        if group["adapt"]:
            w_norm = torch.stack(list(torch._foreach_norm(w)))
            g_norm = torch.stack(list(torch._foreach_norm(g)))
            scaled = g_norm + wd * w_norm
            tiny = torch.finfo(scaled.dtype).tiny
            local = lr * group["trust"] * w_norm / scaled.clamp_min(tiny)
            local = torch.where(w_norm > 0, local, lr)  # or what starts at zero would stay there
            torch._foreach_mul_(update, list(local.unbind()))
        else:
            torch._foreach_mul_(update, lr)
        if found_inf is None:
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, update)
            torch._foreach_sub_(w, buffers)
            return
        keep = 1 - found_inf  # 1: take the step; 0: leave weights and buffers as they are
        torch._foreach_mul_(buffers, 1 - keep * (1 - group["momentum"]))
        torch._foreach_mul_(update, keep)
        torch._foreach_add_(buffers, update)
        torch._foreach_sub_(w, torch._foreach_mul(buffers, keep))

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _unscaled(
    weights: list[Tensor], scale: Tensor | None, found_inf: Tensor | None
) -> list[Tensor]:
    grads = [p.grad for p in weights if p.grad is not None]
    if scale is not None:
        grads = list(torch._foreach_mul(grads, 1 / scale))
    if found_inf is not None:
        grads = [torch.where(found_inf > 0, torch.zeros_like(x), x) for x in grads]
    return grads


def build(spec: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the trainable parameters of `model`.

    Two groups: those with weight decay and LARS adaptation, and those `spec.exclude` names; and the
    same again for those whose rate is `spec.constant`.
    """
    groups: list[dict[str, Any]] = []
    for constant in (False, True):
        members: dict[bool, list[nn.Parameter]] = {False: [], True: []}  # excluded or not
        for name, p in model.named_parameters():
            is_constant = bool(spec.constant) and name.startswith(spec.constant)
            if p.requires_grad and is_constant == constant:
                members[_is_excluded(spec.exclude, name, p)].append(p)
        decayed: dict[str, Any] = {"weight_decay": spec.weight_decay, "adapt": True}
        excluded: dict[str, Any] = {"weight_decay": 0.0, "adapt": False}
        if spec.excluded_lr != 1:
            excluded["factor"] = spec.excluded_lr
        for group, inside in ((decayed, members[False]), (excluded, members[True])):
            if constant:
                group["constant"] = True
            if inside:
                groups.append({"params": inside, **group})
    if spec.constant and not any("constant" in group for group in groups):
        raise ValueError(f"optimizer.constant {spec.constant!r}: no parameter's name begins so")
    if spec.name == "lars":
        return LARS(groups, lr=spec.lr, momentum=spec.momentum, trust=spec.trust)
    for group in groups:
        del group["adapt"]
    on_device = next(model.parameters()).is_cuda
    # fused steps skip infinite gradients on the device, so a GradScaler needs no sync
    return sgd(groups, spec, fused=on_device)


def rate(group: dict[str, Any], now: float, initial: float) -> float:
    """The rate of a group of `build` where the schedule is at `now`."""
    return float((initial if group.get("constant") else now) * group.get("factor", 1))


def sgd(groups: list[dict[str, Any]], spec: Optimizer, *, fused: bool) -> torch.optim.SGD:
    """torch's SGD, multi-tensor or fused, with momentum that starts at zero.

    torch 2.15 leaves the buffers of a fused first step uninitialised when that step is skipped for
    infinite gradients, and the second step then reads them.
    """
    kind = {"fused": True} if fused else {"foreach": True}
    optimizer = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, **kind)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def _is_excluded(rule: str, name: str, p: Tensor) -> bool:
    if rule == "none" or p.ndim > 1:
        return False
    is_gain_of_head = "backbone" not in name.split(".") and name.endswith("weight")
    return not (rule == "log" and is_gain_of_head)
