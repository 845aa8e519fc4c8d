"""The suites: the paper's scale, its CPU-sized twin, a one-GPU twin, and the user's own."""

from lewel_bench.harness.site import Site
from lewel_bench.harness.suite import NO_BLUR, Suite
from lewel_bench.pretrain.recipe import Backbone, unknown

PAPER = Suite(
    name="paper",
    label="the paper's scale: ImageNet-1K, ResNet-50, 224 px",
    source="LEWEL, CVPR 2022, Section 4",
    comparable=True,
)

_SMALL_MOCO = {"augment": NO_BLUR, "args.queue": 1024, "args.hidden": 256, "ema.start": 0.99}
_SMALL_BYOL = {"augment": NO_BLUR, "args.hidden": 512, "ema.start": 0.98}

SHAPES = Suite(
    name="shapes",
    label="the CPU-sized twin: generated scenes, a narrow ResNet-18, 64 px, a tenth of the epochs",
    source="settings chosen by `linear` on held-out images, see docs; queue and momentum follow "
    "MoCo's CIFAR-10 notebook",
    data={"imagenet": "shapes", "imagenet100": "shapes"},
    backbone=Backbone(arch="resnet18", stem="small", width=24),
    image_size=64,
    epochs=0.1,
    batch=64,
    recipes={
        "moco_v2": _SMALL_MOCO,
        "lewel_m": _SMALL_MOCO,
        "byol": _SMALL_BYOL,
        "lewel_b": _SMALL_BYOL,
    },
    protocols={
        "linear_lars": {"image_size": 64, "resize": 72, "batch": 256, "epochs": 15},
        "linear_sgd": {
            "image_size": 64,
            "resize": 72,
            "batch": 256,
            "epochs": 15,
            "milestones": [9, 12],
        },
        "knn": {"image_size": 64, "resize": 72},
        "semi_1pct": {"image_size": 64, "resize": 72, "batch": 32, "bn_group": None},
        "semi_10pct": {"image_size": 64, "resize": 72, "batch": 64, "bn_group": None},
    },
)

CIFAR10 = Suite(
    name="cifar10",
    label="a one-GPU twin: class folders of 32 px images, ResNet-18 with the 3x3 stem",
    source="facebookresearch/moco CIFAR-10 notebook (batch 512, queue 4096, m .99, tau .1, "
    "wd 5e-4, BN over 64 images)",
    data={"imagenet": "cifar10", "imagenet100": "cifar10"},
    backbone=Backbone(arch="resnet18", stem="cifar"),
    image_size=32,
    batch=512,
    recipes={},
    protocols={},
)

SUITES = {suite.name: suite for suite in (PAPER, SHAPES, CIFAR10)}


def get(name: str, site: Site) -> Suite:
    """A suite by name. Raises ValueError naming the nearest, also for a `like` that is unknown."""
    if name in SUITES:
        return SUITES[name]
    if name not in site.suites:
        raise ValueError(unknown("suite", name, [*SUITES, *site.suites]))
    own = site.suites[name]
    if own.like not in SUITES:
        raise ValueError(unknown(f"suite that {name} is like", own.like, SUITES))
    like = SUITES[own.like]
    folder = f"folder:{site.resolve(own.data)}"
    return like.model_copy(
        update={
            "name": name,
            "label": f"as {own.like}, on {own.data}",
            "source": f"site file {site.path}",
            "comparable": False,
            "data": {"imagenet": folder, "imagenet100": folder},
        }
    )
