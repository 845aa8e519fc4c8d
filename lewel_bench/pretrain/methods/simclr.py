"""SimCLR: tell the other view of an image from both views of all others in the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
arXiv 2002.05709.

B images of this process, G of all, D channels of f, d = dim. Notation: f encoder, g projector.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import join
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import SimCLRSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder, zero_last_gains
from lewel_bench.pretrain.parts.heads import deep
from lewel_bench.pretrain.parts.losses import unit
from lewel_bench.pretrain.parts.momentum import global_rows


class SimCLR(Method):
    """SimCLR with a projector whose last norm has a gain but no offset."""

    def __init__(
        self, settings: SimCLRSettings, backbone: Callable[[], ResNet], norm: Norm
    ) -> None:
        super().__init__()
        self.tau = settings.tau
        f = zero_last_gains(backbone())
        widths = (f.channels, *(settings.hidden,) * (settings.layers - 1), settings.dim)
        self.online = Encoder(f, deep(widths, norm, last="gain", init="normal"))

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent over the two views of the images of all ranks."""
        z, y = self.online(torch.cat([*views]))  # (2B, d), (2B, D): one batch norm for both views
        z1, z2 = (join(part) for part in unit(z).chunk(2))  # (G, d)
        return nt_xent(z1, z2, global_rows(z1, rows), self.tau), {"feature_std": feature_std(y)}


def nt_xent(z1: Tensor, z2: Tensor, own: slice, tau: float) -> Tensor:
    """Eq. 1 for the images `own` of unit vectors z1, z2 (G, d), summed over the two directions.

    The code's sum is twice the paper's mean over 2G; the learning rate is tuned for it.
    """
    with torch.autocast(z1.device.type, enabled=False):
        target = torch.arange(own.start, own.stop, device=z1.device)
        self_ = torch.arange(len(z1), device=z1.device) == target[:, None]  # (B, G)
        loss = z1.new_zeros(())
        for a, b in ((z1, z2), (z2, z1)):
            others = (a[own] @ a.T).masked_fill(self_, -torch.inf)
            logits = torch.cat([a[own] @ b.T, others], 1) / tau  # (B, 2G)
            loss = loss + cross_entropy(logits, target)
    return loss
