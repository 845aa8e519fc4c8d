"""PCL: MoCo, and the same with the centres of clusters in place of other images.

Li et al., "Prototypical Contrastive Learning of Unsupervised Representations", ICLR 2021,
arXiv 2005.04966, Sections 3.2 to 3.4, Algorithm 1.

B images of this process, G of all, N of the data set, D channels of f, c = dim, K = queue, k
clusters of one of M clusterings. Notation: f encoder, g projector, v query, v' key, prototypes C
with concentrations φ; θ online, ξ momentum encoder.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, TrainingSet, Views
from lewel_bench.pretrain.methods.settings import PCLSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, global_rows, shuffled
from lewel_bench.pretrain.parts.prototypes import Prototypes, proto_nce
from lewel_bench.pretrain.recipe import Ema


class PCL(Method):
    """PCL; the first view is the query, the second the key."""

    def __init__(
        self,
        settings: PCLSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
        images: int,
    ) -> None:
        super().__init__()
        self.seed, self.tau = seed, settings.tau
        self.negatives, self.warmup = settings.negatives, settings.warmup
        f, dim = backbone(), settings.dim
        if settings.head == "mlp":
            g: nn.Module = mlp(
                f.channels, settings.hidden, dim, None, bias=(True, True), init="torch"
            )
        else:
            g = nn.Linear(f.channels, dim)
        self.online = Encoder(f, g)
        self.target = Momentum(self.online, ema)
        self.queue = Queue(settings.queue, dim)
        self.prototypes = nn.ModuleList(Prototypes(k, dim, images) for k in settings.cluster_counts)

    @property
    def clusterings(self) -> list[Prototypes]:
        """The prototypes of each clustering."""
        return cast(list[Prototypes], list(self.prototypes))

    def before_epoch(self, epoch: int, images: TrainingSet) -> None:
        """Cluster the momentum features of all training images, from epoch `warmup` on."""
        if epoch < self.warmup:
            return
        self.target.eval()
        features = images.features(lambda x: unit(self.target(x).z))  # (N, c)
        self.target.train()
        for m, prototypes in enumerate(self.clusterings):
            prototypes.fit(features, self.tau, seed=m)

    def keys(self, views: Views, step: int) -> tuple[Tensor, list[Tensor]]:
        """Keys of the second view, and the numbers of the prototypes drawn as negatives."""
        (k,) = shuffled(lambda x: (unit(self.target(x).z),), views.x[1], self.seed, step)
        drawn = []
        for m, prototypes in enumerate(self.clusterings):
            # Drawn on the host from (seed, step): the same on every rank, and after a resume. The
            # last number of a counter makes streams apart, from that of `shuffled` too.
            random = np.random.Generator(
                np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, 1 + m])
            )
            size = len(prototypes.C)
            chosen = torch.from_numpy(random.permutation(size)[: self.negatives])
            drawn.append(chosen.to(k.device, non_blocking=True))
        return k, drawn  # (G, c), (r,) each

    def forward(
        self, views: Views, keys: tuple[Tensor, list[Tensor]], rows: slice
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE, and from epoch `warmup` on ProtoNCE with all clusterings."""
        k, drawn = keys
        z, y = self.online(views.x[0])  # (B, c), (B, D)
        v = unit(z)
        loss = info_nce(v, k[global_rows(k, rows)], self.queue.keys, self.tau)
        shown = {"feature_std": feature_std(y), "instance_loss": loss.detach()}
        if views.epoch >= self.warmup:
            losses = [
                proto_nce(v, p.C, p.phi, p.owner[views.index], negatives)
                for p, negatives in zip(self.clusterings, drawn, strict=True)
            ]
            loss = loss + torch.stack(losses).mean()  # Eq. 11
        return loss, shown

    def after_step(self, keys: tuple[Tensor, list[Tensor]], step: int, steps: int) -> None:
        """Update the momentum network, then push the keys."""
        # MoCo updates ξ at the start of the next step; its first update changes nothing: ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(keys[0], step)
