"""LEWEL_B: BYOL, and the same on embeddings of the regions that its own projector points at.

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898, Sections 3.2 and 3.3, Eq. 3 and 5. With `ema.buffers` the target normalises with
averaged statistics (EMAN, the default of the paper); without, with those of its own batch (the
SyncBN run of 400 epochs).

B images, D channels of f, d maps, h groups, n = d/h aligned embeddings of dimension c. Notation:
f encoder, g projector and maps, p semantic projector, q and s predictors; θ online, ξ target.
"""

from collections.abc import Callable

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import LewelBSettings
from lewel_bench.pretrain.parts.aligned import Aligned, AlignedEncoder
from lewel_bench.pretrain.parts.diagnostics import alignment, feature_std
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import mse
from lewel_bench.pretrain.parts.momentum import Momentum
from lewel_bench.pretrain.recipe import Ema


class LewelB(Method):
    """LEWEL with the normalised mean square error."""

    def __init__(
        self, settings: LewelBSettings, backbone: Callable[[], ResNet], norm: Norm, *, ema: Ema
    ) -> None:
        super().__init__()
        self.beta = settings.beta
        f, d, c, hidden = backbone(), settings.d, settings.c or settings.d, settings.hidden
        g, p = mlp(f.channels, hidden, d, norm), mlp(f.channels, hidden, c, norm)
        self.online = AlignedEncoder(f, g, p, settings.h, settings.scale)
        self.target = Momentum(self.online, ema)
        self.q = mlp(d, hidden, d, norm)
        self.s = mlp(c, hidden, c, norm)

    @property
    def projector(self) -> nn.Module:
        """g, which also makes the maps of Figure 5."""
        return self.online.projector

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of both directions, summed: global and aligned, weighted by beta."""
        x1, x2 = views
        o1, o2 = self.online(x1), self.online(x2)
        t1, t2 = self.target(x1), self.target(x2)
        # Eq. 5 has one direction; the code sums both, and the learning rate is tuned for that.
        loss = self._loss(o1, t2) + self._loss(o2, t1)
        return loss, {"feature_std": feature_std(o1.y), **alignment(o1)}

    def _loss(self, online: Aligned, target: Aligned) -> Tensor:
        L_g = mse(self.q(online.z), target.z)  # (B, d)
        L_a = mse(self.s(online.z_k), target.z_k)  # (B, n, c)
        return (1 - self.beta) * L_g + self.beta * L_a  # Eq. 3

    def after_step(self, keys: None, step: int, steps: int) -> None:
        """Update the momentum network."""
        self.target.update(self.online, step, steps)
