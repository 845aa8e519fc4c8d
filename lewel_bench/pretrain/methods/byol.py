"""BYOL: predict the momentum network's embedding of the other view.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv 2006.07733. With `ema.buffers` the
target normalises with averaged statistics: EMAN, Cai et al., CVPR 2021, arXiv 2101.08482.

B images, D channels of f, d = dim. Notation: f encoder, g projector, q predictor; θ online, ξ
target.
"""

from collections.abc import Callable

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import BYOLSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import mse
from lewel_bench.pretrain.parts.momentum import Momentum
from lewel_bench.pretrain.recipe import Ema


class BYOL(Method):
    """BYOL with the heads of EMAN's code, or with the original's."""

    def __init__(
        self,
        settings: BYOLSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
    ) -> None:
        super().__init__()
        f = backbone()
        dim, hidden, bias = settings.dim, settings.hidden, (settings.bias, False)
        g = mlp(
            f.channels, hidden, dim, norm, bias=bias, init="haiku" if settings.bias else "kaiming"
        )
        self.online = Encoder(f, g)
        # The original starts ξ from another seed; EMAN and most others start at ξ = θ.
        self.target = Momentum(self.online, ema)
        self.q = mlp(dim, hidden, dim, norm, bias=bias, init="haiku" if settings.bias else "normal")

    @property
    def projector(self) -> nn.Module:
        """g, which also makes the maps of Figure 5."""
        return self.online.g

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of both directions, summed, with targets from the momentum network."""
        x1, x2 = views
        z1, y1 = self.online(x1)  # (B, d), (B, D)
        z2, _ = self.online(x2)
        t1, _ = self.target(x1)  # (B, d)
        t2, _ = self.target(x2)
        loss = mse(self.q(z1), t2) + mse(self.q(z2), t1)
        return loss, {"feature_std": feature_std(y1)}

    def after_step(self, keys: None, step: int, steps: int) -> None:
        """Update the momentum network."""
        self.target.update(self.online, step, steps)
