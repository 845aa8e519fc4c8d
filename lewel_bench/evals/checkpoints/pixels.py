"""How a network expects its pixels, and the same network for pixels as everything here gives them.

Channel order and scale are put into the first convolution, which is exact whatever the engine.
Another mean than ImageNet's cannot be: at the borders of an image zeros stand for it. The backbone
takes it off (`pretrain.recipe.Backbone.mean`).
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lewel_bench.pretrain.colour import MEAN, STD
from lewel_bench.value import Value

Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Pixels(Value):
    """Values in [0, 1], minus `mean`, over `std`, in the `order` of the network's channels; `mean`
    and `std` are red, green, blue."""

    order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[Share, Share, Share] = MEAN
    std: tuple[Share, Share, Share] = STD

    @property
    def other_mean(self) -> tuple[float, float, float] | None:
        """The mean where it is not ImageNet's."""
        same = all(abs(value - usual) <= 1e-4 for value, usual in zip(self.mean, MEAN, strict=True))
        return None if same else self.mean

    @property
    def usual(self) -> bool:
        """Whether nothing differs from torchvision's."""
        return self == Pixels()

    def __str__(self) -> str:
        return f"{self.order}, mean {self.mean}, std {self.std}"


def adapt(weight: Tensor, pixels: Pixels) -> Tensor:
    """The first convolution (C, 3, k, k) for pixels in torchvision's order and scale."""
    if pixels.usual:
        return weight
    turned = weight if pixels.order == "RGB" else weight.flip(1)
    scale = [std / theirs for std, theirs in zip(STD, pixels.std, strict=True)]
    return turned * weight.new_tensor(scale)[:, None, None]
