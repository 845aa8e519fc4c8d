"""LEWEL_M: MoCo, and the same on embeddings of the regions that its own projector points at.

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898, Sections 3.2 and 3.3, Eq. 3 and 4. No code was released for this variant; what
the text leaves open follows MoCo v2 and the released LEWEL_B.

B images of this process, G of all, D channels of f, d maps, h groups, n = d/h aligned embeddings
of dimension c, K = queue. Notation: f encoder, g projector and maps, p semantic projector.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import rank
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods import Temperature, Weight
from lewel_bench.pretrain.parts.aligned import (
    AlignedEncoder,
    Noise,
    gaussian,
    info_nce_other_images,
    info_nce_same_index,
)
from lewel_bench.pretrain.parts.diagnostics import alignment, feature_std
from lewel_bench.pretrain.parts.losses import info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, own, shuffled
from lewel_bench.pretrain.recipe import Ema, Positive


class Keys(NamedTuple):
    z: Tensor  # (G, d)
    z_k: Tensor  # (G, n, c)
    step: int


class LewelM(Method):
    """LEWEL with InfoNCE; the first view is the query, the second the key.

    `negatives` of the aligned loss are the aligned embeddings of the other images of the batch: all
    n ("other_images": "the quantity is sufficiently large", and Section 4.4 has their number depend
    on d and h) or the one of the same index. `maps` and `semantic` are the ablations of Tables 5
    and 6: see `AlignedEncoder`; random maps are drawn anew for each image, view and step.
    """

    def __init__(
        self,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
        h: Positive = 4,
        d: Positive = 128,
        c: Positive | None = None,
        hidden: Positive = 2048,
        tau: Temperature = 0.2,
        queue: Positive = 65536,
        beta: Weight = 0.5,
        negatives: Literal["other_images", "same_index"] = "other_images",
        maps: Literal["coupled", "uncoupled", "random", "uniform", "none"] = "coupled",
        semantic: bool = True,
    ) -> None:
        super().__init__()
        self.seed, self.tau, self.beta = seed, tau, beta
        self.online = AlignedEncoder(
            backbone(), norm, h=h, d=d, c=c or d, hidden=hidden, maps=maps, semantic=semantic
        )
        self.target = Momentum(self.online, ema)
        self.queue = Queue(queue, d)
        self.aligned_loss = (
            info_nce_other_images if negatives == "other_images" else info_nce_same_index
        )

    @property
    def projector(self) -> nn.Module | None:
        return self.online.projector

    def keys(self, views: Views, step: int) -> Keys:
        _, x2 = views
        noise = self._noise(step, 1, rank() * len(x2))

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            z, z_k, *_ = self.target(x, noise)
            return unit(z), unit(z_k)

        z, z_k = shuffled(encode, x2, self.seed, step)
        return Keys(z, z_k, step)

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        x1, _ = views
        at = own(keys.z, rows)
        q = self.online(x1, self._noise(keys.step, 0, at.start))
        L_g = info_nce(unit(q.z), keys.z[at], self.queue.keys, self.tau)
        L_a = self.aligned_loss(unit(q.z_k), keys.z_k, at, self.tau)
        loss = (1 - self.beta) * L_g + self.beta * L_a  # Eq. 3
        return loss, {"feature_std": feature_std(q.y), **alignment(q)}

    def _noise(self, step: int, view: int, first: int) -> Noise:
        return partial(gaussian, seed=self.seed, step=step, view=view, first=first)

    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        # MoCo updates ξ before the next keys; at step 0 that does nothing, as ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(keys.z, step)
