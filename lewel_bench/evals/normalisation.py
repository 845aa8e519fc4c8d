"""How detection and segmentation normalise pixels of 0 to 255 for a backbone."""

from lewel_bench.pretrain.recipe import Backbone

# ImageNet's red, green, blue of 0..255: the backbones' weights are torchvision's, not Caffe's
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def mean_of(spec: Backbone) -> tuple[float, ...]:
    """The mean that a backbone expects, subtracted before padding with zeros."""
    return tuple(255 * value for value in spec.mean) if spec.mean else MEAN


def without_mean(spec: Backbone) -> Backbone:
    """`spec` for a model that subtracts the mean itself."""
    return spec.model_copy(update={"mean": None})
