"""How the views of an image are drawn: values with their source, no torch.

The operations run in the order crop, jitter, grey, blur, solarize, flip; a flip commutes with all
of them, so recipes that flip first are drawn alike.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from lewel_bench.pretrain.recipe import Positive, Rate
from lewel_bench.value import Value

Chance = Annotated[float, Field(ge=0, le=1)]
Span = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class ViewSpec(Value):
    """One view. `brightness`, `contrast` and `saturation` are drawn from 1 ± the value and `hue`
    from ± the value (of a turn), in a random order, together with chance `jitter`.

    `blur_kernel` "pillow" is `ImageFilter.GaussianBlur(sigma)`, three box blurs; "tenth" is a
    Gaussian cut to an odd number of taps near a tenth of the image side (23 at 224). `blur_sigma`
    is the range of sigma in pixels of the view; solarize inverts the levels from 128 up. `side` is
    a view's side as a share of the recipe's image size; `flip` "first" is as the first view.
    """

    source: str
    scale: Span
    ratio: Span = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    jitter: Chance = 0.8
    brightness: Chance = 0.4
    contrast: Chance = 0.4
    saturation: Chance
    hue: Annotated[Rate, Field(le=0.5)] = 0.1
    grey: Chance = 0.2
    blur: Chance
    blur_sigma: Span = (0.1, 2.0)
    blur_kernel: Literal["pillow", "tenth"] = "pillow"
    solarize: Chance = 0.0
    flip: Chance | Literal["first"] = 0.5
    side: Annotated[float, Field(gt=0, le=1)] = 1.0

    def identity(self) -> dict[str, Any]:
        """What the view does; a `side` of 1 is left out, as keys without one exist."""
        unsaid = {"source", "side"} if self.side == 1 else {"source"}
        return self.model_dump(exclude=unsaid)

    def pixels(self, image_size: Positive) -> int:
        """The side of the view in pixels for a recipe of `image_size`."""
        return round(image_size * self.side)

    def taps(self, size: Positive) -> int:
        """Taps of the blur at `size` pixels; 0 is Pillow's blur, which has no kernel size."""
        return 0 if self.blur_kernel == "pillow" else 2 * (size // 20) + 1


_MOCO_V2 = ViewSpec(
    source="arXiv 2003.04297; facebookresearch/moco main_moco.py @7397dfe",
    scale=(0.2, 1.0),
    saturation=0.4,
    blur=0.5,
)
_EMAN_1 = ViewSpec(
    source="arXiv 2101.08482; LEWEL and EMAN code: RRC(.2, 1) bilinear, Pillow blur and solarize",
    scale=(0.2, 1.0),
    saturation=0.2,
    blur=1.0,
)
# The published JAX code adds its brightness, takes the contrast's mean per channel and pads its
# blur with zeros; these are torchvision's operations, as in every PyTorch reproduction.
_BYOL_1 = ViewSpec(
    source="arXiv 2006.07733 app. B; deepmind-research byol/utils/augmentations.py @923ad3c",
    scale=(0.08, 1.0),
    interpolation="bicubic",
    saturation=0.2,
    blur=1.0,
    blur_kernel="tenth",
)
_SECOND = {"blur": 0.1, "solarize": 0.2}
_SIMCLR = ViewSpec(
    source="arXiv 2002.05709 app. A; google-research/simclr @383d414 data_util.py (strength 1)",
    scale=(0.08, 1.0),
    interpolation="bicubic",
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    blur=0.5,
    blur_kernel="tenth",
)
_BARLOW_1 = ViewSpec(
    source="arXiv 2103.03230; facebookresearch/barlowtwins @8e8d284 main.py: BYOL's, by Pillow",
    scale=(0.08, 1.0),
    interpolation="bicubic",
    saturation=0.2,
    blur=1.0,
)
# Its standard deviation of red is .228 in the code, a slip of .4 % that all official runs share;
# here it is .229 as everywhere.
_SWAV = ViewSpec(
    source="arXiv 2006.09882; facebookresearch/swav @06b1b7c src/multicropdataset.py",
    scale=(0.14, 1.0),
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    blur=0.5,
)
_SWAV_SMALL = _SWAV.model_copy(update={"scale": (0.05, 0.14), "side": 96 / 224})
_SWAV_2 = _SWAV.model_copy(update={"scale": (0.08, 1.0)})
_SUPERVISED = ViewSpec(
    source="torchvision references/classification: RandomResizedCrop and a flip",
    scale=(0.08, 1.0),
    jitter=0.0,
    saturation=0.0,
    grey=0.0,
    blur=0.0,
)
_INSTDISC = ViewSpec(
    source="arXiv 1805.01978; zhirongw/lemniscate.pytorch @f7cfe29 main.py, and MoCo v1: jitter "
    "always, no blur (there grey comes before it)",
    scale=(0.2, 1.0),
    jitter=1.0,
    saturation=0.4,
    hue=0.4,
    blur=0.0,
)
_RESIM = ViewSpec(
    source="arXiv 2103.12902; Tete-Xiao/ReSim @b6a36ee main_moco.py (there blur comes first)",
    scale=(0.2, 1.0),
    saturation=0.4,
    blur=0.5,
)
_PIXPRO_1 = ViewSpec(
    source="arXiv 2011.10043; zdaxie/PixPro @e390d6b contrast/data/transform.py (BYOL)",
    scale=(0.08, 1.0),
    saturation=0.2,
    blur=1.0,
)

_VIEWS: dict[str, tuple[ViewSpec, ...]] = {
    "moco_v2": (_MOCO_V2, _MOCO_V2),
    "byol_eman": (_EMAN_1, _EMAN_1.model_copy(update=_SECOND)),
    "byol_paper": (_BYOL_1, _BYOL_1.model_copy(update=_SECOND)),
    "simclr": (_SIMCLR, _SIMCLR),
    "barlow_twins": (_BARLOW_1, _BARLOW_1.model_copy(update=_SECOND)),
    "swav": (_SWAV,) * 2 + (_SWAV_SMALL,) * 6,
    "swav_2crop": (_SWAV_2, _SWAV_2),
    "supervised": (_SUPERVISED,),
    "instdisc": (_INSTDISC,),
    "pcl_v1": (_INSTDISC, _INSTDISC),
    "resim": (_RESIM, _RESIM.model_copy(update={"flip": "first"})),
    "pixpro": (_PIXPRO_1, _PIXPRO_1.model_copy(update=_SECOND)),
}


def _no_blur(spec: ViewSpec) -> ViewSpec:
    # For images of 32 to 64 px: MoCo's CIFAR-10 notebook, and SimSiam (arXiv 2011.10566 app. D).
    return spec.model_copy(update={"blur": 0.0, "source": f"{spec.source}; no blur at 32-64 px"})


# Views of full side come first, and those of a smaller side have one in common: `loader` keeps two
# stacks of pixels.
AUGMENTS: dict[str, tuple[ViewSpec, ...]] = _VIEWS | {
    f"{name}_no_blur": tuple(map(_no_blur, views)) for name, views in _VIEWS.items()
}
