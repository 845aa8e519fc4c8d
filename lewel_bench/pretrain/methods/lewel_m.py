"""LEWEL_M: MoCo, and the same on embeddings of the regions that its own projector points at.

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898, Sections 3.2 and 3.3, Eq. 3 and 4. No code was released for this variant; what
the text leaves open follows MoCo v2 and the released LEWEL_B.

B images of this micro-batch (`rows` of the process's), G of all processes, D channels of f, d maps
and dimensions of z, h groups, n = d/h aligned embeddings of dimension c, K = queue. Notation: f
encoder, g projector, which also makes the maps, p semantic projector; k indexes aligned embeddings.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import LewelMSettings
from lewel_bench.pretrain.parts.aligned import (
    AlignedEncoder,
    info_nce_other_images,
    info_nce_same_index,
)
from lewel_bench.pretrain.parts.diagnostics import alignment, feature_std
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, global_rows, shuffled
from lewel_bench.pretrain.recipe import Ema


class Keys(NamedTuple):
    z: Tensor  # (G, d)
    z_k: Tensor  # (G, n, c)


class LewelM(Method):
    """LEWEL with InfoNCE; the first view is the query, the second the key.

    Open in the text, and chosen here: the negatives of the aligned loss are all aligned embeddings
    of the other images of the global batch (inferred from Section 4.4; `negatives`), and only the
    global embedding has a queue. Everything else is as in MoCo v2.
    """

    def __init__(
        self,
        settings: LewelMSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
    ) -> None:
        super().__init__()
        self.seed, self.tau, self.beta = seed, settings.tau, settings.beta
        self.online = self.encoder(settings, backbone(), norm)
        self.target = Momentum(self.online, ema)
        self.queue = Queue(settings.queue, settings.d)
        if settings.negatives == "other_images":
            self.aligned_loss = info_nce_other_images
        else:
            self.aligned_loss = info_nce_same_index

    def encoder(self, settings: LewelMSettings, f: ResNet, norm: Norm) -> nn.Module:
        """Encoder f with projector g and semantic projector p (Fig. 2)."""
        if settings.is_ablation:
            raise ValueError("ablations of LEWEL_M are made by lewel_ablations.AblatedLewelM")
        D, c = f.channels, settings.c or settings.d
        g, p = mlp(D, settings.hidden, settings.d, norm), mlp(D, settings.hidden, c, norm)
        return AlignedEncoder(f, g, p, settings.h)

    @property
    def projector(self) -> nn.Module | None:
        """g, which also makes the maps of Figure 5."""
        return cast(AlignedEncoder, self.online).projector

    def keys(self, views: Views, step: int) -> Keys:
        """Unit embeddings of the second view of all G images, from the momentum network."""

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            z, z_k, *_ = self.target(x)
            return unit(z), unit(z_k)

        _, x2 = views
        return Keys(*shuffled(encode, x2, self.seed, step))

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Global and aligned InfoNCE of the first view against the keys, weighted by beta."""
        x1, _ = views
        at = global_rows(keys.z, rows)
        q = self.online(x1)
        L_g = info_nce(unit(q.z), keys.z[at], self.queue.keys, self.tau)
        L_a = self.aligned_loss(unit(q.z_k), keys.z_k, at, self.tau)
        loss = (1 - self.beta) * L_g + self.beta * L_a  # Eq. 3
        return loss, {"feature_std": feature_std(q.y), **alignment(q)}

    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        """Update the momentum network, then push the keys."""
        # MoCo updates ξ at the start of the next step; its first update changes nothing: ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(keys.z, step)
