"""MoCo v2: tell the other view of an image from a queue of other images.

He et al., "Momentum Contrast", CVPR 2020, arXiv 1911.05722; Chen et al., "Improved Baselines with
Momentum Contrastive Learning", arXiv 2003.04297.

B images of this process, G of all, D channels of f, c = dim, K = queue. Notation: f encoder, g
projector, q query, k key.
"""

from collections.abc import Callable

from torch import Tensor

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods import Temperature
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum
from lewel_bench.pretrain.parts.negatives import Queue, own, shuffled
from lewel_bench.pretrain.recipe import Ema, Positive


class MoCoV2(Method):
    """MoCo v2; the first view is the query, the second the key.

    `head_norm` True puts LEWEL_M's projector (batch norm, no biases) in place of the official one:
    the control that differs from LEWEL_M by the aligned branch alone.
    """

    def __init__(
        self,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
        dim: Positive = 128,
        hidden: Positive = 2048,
        tau: Temperature = 0.2,
        queue: Positive = 65536,
        head_norm: bool = False,
    ) -> None:
        super().__init__()
        self.seed, self.tau = seed, tau
        f = backbone()
        if head_norm:
            g = mlp(f.channels, hidden, dim, norm)
        else:
            g = mlp(f.channels, hidden, dim, None, bias=(True, True), init="torch")
        self.online = Encoder(f, g)
        self.target = Momentum(self.online, ema)
        self.queue = Queue(queue, dim)

    @property
    def backbone(self) -> ResNet:
        return self.online.backbone

    def keys(self, views: Views, step: int) -> Tensor:
        _, x2 = views
        (k,) = shuffled(lambda x: (unit(self.target(x).z),), x2, self.seed, step)
        return k  # (G, c)

    def forward(self, views: Views, keys: Tensor, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        x1, _ = views
        z, y = self.online(x1)  # (B, c), (B, D)
        loss = info_nce(unit(z), keys[own(keys, rows)], self.queue.keys, self.tau)
        return loss, {"feature_std": feature_std(y)}

    def after_step(self, keys: Tensor, step: int, steps: int) -> None:
        # MoCo updates ξ before the next keys; at step 0 that does nothing, as ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(keys, step)
