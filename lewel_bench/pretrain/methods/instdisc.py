"""InstDisc: tell an image from all others, which a memory bank remembers.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
arXiv 1805.01978, Sections 3.1 and 3.2.

B images of this process, G of all, N of the data set, m noise samples an image, c = dim. Notation:
f encoder, v embedding, V memory bank, Z normalising constant.
"""

from collections.abc import Callable
from copy import deepcopy
from math import log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import gather, rank
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import InstDiscSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.losses import unit


class Keys(NamedTuple):
    """What a step shares."""

    at: Tensor  # (B, 1+m) rows of V: the image's own, then its noise samples
    v: Tensor  # (B, c), which `forward` fills


class InstDisc(Method):
    """Noise-contrastive estimation with a single view of an image; there is no momentum network."""

    V: Tensor
    log_Z: Tensor

    def __init__(
        self,
        settings: InstDiscSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        seed: int,
        images: int,
    ) -> None:
        super().__init__()
        self.seed, self.m = seed, settings.m
        self.tau, self.keep = settings.tau, settings.keep
        f, dim = backbone(), settings.dim
        self.online = Encoder(f, nn.Linear(f.channels, dim))
        # of unit length on average, as the code starts it
        self.register_buffer("V", (2 * torch.rand(images, dim) - 1) * (3 / dim) ** 0.5)
        self.register_buffer("log_Z", torch.zeros(()))

    @torch.no_grad()
    def keys(self, views: Views, step: int) -> Keys:
        """The memory entries that each image is compared with: its own, then m drawn at random."""
        N, (B, c) = len(self.V), (len(views.index), self.V.shape[1])
        # Drawn on the host from (seed, step), for all ranks alike and after a resume.
        random = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        everyone = len(gather(views.index))
        noise = torch.from_numpy(random.integers(N, size=(everyone, self.m)))
        mine = noise[rank() * B :][:B].to(views.index.device, non_blocking=True)
        at = torch.cat([views.index[:, None], mine], 1)
        if step == 0:
            v = unit(deepcopy(self.online)(views.x[0]).z)  # leaves no trace in batch norms
            P = torch.exp(self._similarity(v, at) / self.tau)
            self.log_Z.copy_(torch.log(N * gather(P).mean()))  # Eq. 8, kept ever after
        return Keys(at, self.V.new_empty(B, c))

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """NCE of the similarities to the memory."""
        z, y = self.online(views.x[0])  # (B, c), (B, D)
        v = unit(z)
        keys.v[rows] = v.detach().to(keys.v)
        loss = nce(self._similarity(v, keys.at[rows]), self.log_Z, self.tau, len(self.V))
        return loss, {"feature_std": feature_std(y)}

    def _similarity(self, v: Tensor, at: Tensor) -> Tensor:
        with torch.autocast(v.device.type, enabled=False):
            similarity: Tensor = torch.einsum("bc,bmc->bm", v, self.V[at].to(v))
        return similarity  # (B, 1+m)

    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        """Update the memory entries of the images of this step, on every rank."""
        index, v = gather(keys.at[:, 0]), gather(keys.v)  # (G,), (G, c)
        self.V[index] = unit(self.keep * self.V[index] + (1 - self.keep) * v)


def nce(similarity: Tensor, log_Z: Tensor, tau: float, N: int) -> Tensor:
    """Mean over images of -log h(i, v) - Σ log(1 - h(i', v)): Eq. 6 and 7.

    `similarity` (B, 1+m) of v to its own remembered embedding, then to m noise samples drawn from
    N images. h = P / (P + m/N), so log h = -softplus(log m/N - log P).
    """
    m = similarity.shape[1] - 1
    odds = similarity / tau - log_Z - log(m / N)
    return (softplus(-odds[:, 0]) + softplus(odds[:, 1:]).sum(1)).mean()
