"""A feature pyramid on the backbone, and the global projector (arXiv 1612.03144).

B images, D channels of f, E of the pyramid, c the dimension of an embedding.
"""

from torch import Tensor, nn
from torch.nn.functional import interpolate

from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.parts.heads import mlp


class Pyramid(nn.Module):
    """Encoder f, projector g, and the levels C4 and C3 of a feature pyramid (arXiv 1612.03144)."""

    def __init__(self, backbone: ResNet, hidden: int, dim: int, width: int) -> None:
        super().__init__()
        D = backbone.channels
        self.backbone = backbone
        self.g = mlp(D, hidden, dim, None, bias=(True, True), init="torch")
        self.lateral = nn.ModuleList(nn.Conv2d(D // s, width, 1) for s in (1, 2, 4))
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in (2, 4))
        for conv in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # Detectron's Xavier
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Embedding (B, c), GAP(F) (B, D), and the maps (B, E, h, w) of C4 and C3."""
        *_, F3, F4, F5 = self.backbone.stages(x)
        y = F5.mean((2, 3))
        top, maps = self.lateral[0](F5), []
        for F, lateral, output in zip((F4, F3), self.lateral[1:], self.output, strict=True):
            top = lateral(F) + interpolate(top, F.shape[2:], mode="nearest")
            maps.append(output(top))
        return self.g(y), y, maps
