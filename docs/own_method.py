"""VICReg (Bardes, Ponce and LeCun, ICLR 2022, arXiv 2105.04906) as a method of one's own.

B images of this process, G of all, D channels of f, d = dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import join
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import Settings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.heads import deep
from lewel_bench.pretrain.recipe import Optimizer, Positive, Rate, Recipe, Schedule


class VICRegSettings(Settings):
    """What a recipe's `args` may say, with the types that are checked before it runs."""

    whole_batch = True  # covariances compare all images of a batch: it is never split

    dim: Positive = 8192
    invariance: Rate = 25.0
    variance: Rate = 25.0
    covariance: Rate = 1.0


class VICReg(Method):
    """Two views of an image agree, while the dimensions spread and stay uncorrelated."""

    def __init__(
        self, settings: VICRegSettings, backbone: Callable[[], ResNet], norm: Norm
    ) -> None:
        super().__init__()
        f, widths = backbone(), (settings.dim,) * 3
        self.weights = settings.invariance, settings.variance, settings.covariance
        self.online = Encoder(f, deep((f.channels, *widths), norm, init="torch"))

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        (z1, y1), (z2, _) = (self.online(x) for x in views)  # (B, d), (B, D)
        z1, z2 = join(z1.float()), join(z2.float())  # (G, d)
        terms = (z1 - z2).square().mean(), spread(z1) + spread(z2), repeated(z1) + repeated(z2)
        loss = sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
        return loss, {"feature_std": feature_std(y1)}


def spread(z: Tensor) -> Tensor:
    """How far the standard deviation of each dimension of z (G, d) is below 1, halved (Eq. 1)."""
    return torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2


def repeated(z: Tensor) -> Tensor:
    """Squared covariances between dimensions of z (G, d), over d (Eq. 4)."""
    C = z.T.cov()  # (d, d)
    return (C.square().sum() - C.diagonal().square().sum()) / z.shape[1]


recipe = Recipe(
    name="vicreg_100ep",
    label="VICReg",
    source="arXiv 2105.04906 Section 4.2: LARS, lr .2 x batch/256, 10 epochs of warm-up",
    method="VICReg",
    epochs=100,
    batch=2048,
    optimizer=Optimizer(name="lars", lr=1.6, weight_decay=1e-6, exclude="bias_and_norm"),
    schedule=Schedule(warmup_epochs=10),
    augment="byol_eman",
)
