"""Supervised training with labels: the baseline of the transfer tables.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, as
torchvision's 90-epoch recipe.

B images, D channels of f. Notation: f encoder, g linear classifier.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import SupervisedSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.losses import full


class Supervised(Method):
    """Softmax cross-entropy over the classes of the training set."""

    def __init__(
        self,
        settings: SupervisedSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        classes: int,
    ) -> None:
        super().__init__()
        f = backbone()
        self.online = Encoder(f, nn.Linear(f.channels, classes))

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the labels."""
        (x,) = views
        logits, y = self.online(x)  # (B, classes), (B, D)
        loss = cross_entropy(full(logits), views.labels)
        right = (logits.detach().argmax(1) == views.labels).float().mean()
        return loss, {"feature_std": feature_std(y), "train_top1": 100 * right}
