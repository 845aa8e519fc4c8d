"""SimSiam: predict the embedding of the other view, without gradient through it.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566.

B images, D channels of f, d = dim. Notation: f encoder, g projector (the last layers of the
paper's f), h predictor, p = h(z).
"""

from collections.abc import Callable

from torch import Tensor

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import SimSiamSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder, zero_last_gains
from lewel_bench.pretrain.parts.heads import deep, mlp
from lewel_bench.pretrain.parts.losses import unit


class SimSiam(Method):
    """SimSiam with the heads of the official code."""

    def __init__(
        self, settings: SimSiamSettings, backbone: Callable[[], ResNet], norm: Norm
    ) -> None:
        super().__init__()
        f, dim = zero_last_gains(backbone()), settings.dim
        g = deep((f.channels, *(dim,) * settings.layers), norm, last="plain", init="torch")
        self.online = Encoder(f, g)
        self.h = mlp(dim, settings.hidden, dim, norm, bias=(False, True), init="torch")

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative cosine similarity of both directions; targets have no gradient."""
        x1, x2 = views
        z1, y1 = self.online(x1)  # (B, d), (B, D)
        z2, _ = self.online(x2)
        p1, p2 = self.h(z1), self.h(z2)
        loss = D(p1, z2) / 2 + D(p2, z1) / 2
        # Section 4.1: 1 for outputs spread over the sphere, 0 when they have collapsed
        return loss, {"feature_std": feature_std(y1), "output_std": feature_std(z1)}


def D(p: Tensor, z: Tensor) -> Tensor:
    """Negative cosine similarity of p and z (B, d), Eq. 1; no gradient reaches z."""
    return -(unit(p) * unit(z.detach())).sum(-1).mean()
