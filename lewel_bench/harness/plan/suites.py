"""The suites: the paper's scale, its CPU-sized twin, a one-GPU twin, and the user's own."""

from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.plan.suite import NO_BLUR, Suite
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.value import unknown

PAPER = Suite(
    name="paper",
    label="the paper's scale: ImageNet-1K, ResNet-50, 224 px",
    source="LEWEL, CVPR 2022, Section 4",
    comparable=True,
)

# No blur on small images, and a queue that a run of a few epochs fills. A run has a few hundred
# steps, not 10^5, so targets follow faster and learning rates are higher. The learning rate and
# temperature of MoCo v2 and LEWEL_M, and the target and learning rate of BYOL and LEWEL_B, were
# searched together: results/suite_searches.toml. LARS does not adapt gains and biases; at these
# rates they need Barlow Twins' share (`excluded_lr`), or all features become alike. Targets
# that follow this slowly collapsed sooner with averaged batch-norm statistics (EMAN) than with
# those of their batch. Batches of 32 make twice the steps; `lr` is for the suite's batch of 64.
_MOCO_SCALE = {
    "augment": NO_BLUR,
    "args.queue": 1024,
    "args.hidden": 128,
    "ema.start": 0.99,
}
_BYOL_SCALE = {
    "augment": NO_BLUR,
    "args.hidden": 256,
    "batch": 32,
    "bn_group": 32,
    "ema.start": 0.99,
    "ema.buffers": False,
    "optimizer.excluded_lr": 0.024,
    "schedule.warmup_epochs": 2,
}
# as a share of the images as many clusters as on ImageNet, and one epoch in ten of warm-up
_PCL_SCALE = {"args.clusters": "50,100,200", "args.negatives": 1024, "args.warmup": 1}
# As many prototypes as images in a batch, so that each can have one. With codes as soft as the
# paper's, embeddings that are still alike have uniform ones, and the loss stays at ln 64; at its
# temperature it did so with one seed of three: 64 prototypes, not 3000, leave 128 dimensions room
# to predict none of them.
_SWAV_SCALE = {
    "augment": NO_BLUR,
    "args.hidden": 256,
    "args.prototypes": 64,
    "args.epsilon": 0.01,
    "args.tau": 0.2,
}
_DIM = 128  # of embeddings: the heads' share of the work stays what it is at the paper's scale
_EYE = {"image_size": 64, "resize": 72}
# with some 200 images a class, 200 neighbours would reach into other classes
_PROBE = {
    **_EYE,
    "crop_scale": [0.3, 1.0],  # a twelfth of such a small image shows less than one object
    "batch": 64,
    "epochs": 15,
    "held_out": 360,
    "knn_k": 20,
}
# 500 steps want higher rates of LARS than ImageNet's 28,000
_LARS = {**_PROBE, "lrs": [6.4, 12.8, 25.6, 51.2, 102.4, 204.8]}
# 2,000 steps: the features of BYOL vary little beside their mean, which SGD learns from slowly
_SGD = {**_PROBE, "batch": 16, "milestones": [9, 12]}
_SEMI = {
    **_EYE,
    "epochs": 20,
    "milestones": [12, 16],
    "eval_every": 10,
    "bn_group": None,
    "held_out": 360,
}

# The images are a fifth of COCO's: edges, anchors, RoIs, crops and steps shrink alike. The number
# is that of the candidate itself: training once more would cost half as much again.
_DENSE = {"batch": 4, "held_out": 20, "refit": False, "trials": 1}
_DETECTION = {
    **_DENSE,
    "min_sizes": [160],
    "test_size": 160,
    "max_size": 320,
    "warmup": 10,
    "warmup_factor": 0.1,
    "rpn_samples": 64,
    "post_nms": [60, 30],
    "precise_bn": 15,
}
_C4 = {
    **_DETECTION,
    "steps": 240,
    "milestones": [180, 220],
    "anchors": [24, 48, 96],
    "rois": 12,
    "pre_nms": [200, 100],
    "head_width": 32,
    "lrs": [0.02, 0.04],
}
_FPN = {
    **_DETECTION,
    "steps": 600,
    "milestones": [480, 560],
    "anchors": [12, 24, 48, 96, 144],
    "rois": 32,
    "pre_nms": [60, 40],
    "head_width": 32,
    "fc_width": 1024,
    "lrs": [0.025, 0.05],
}
_COCO = {"weight_decays": [1e-4]}

SHAPES = Suite(
    name="shapes",
    label="the CPU-sized twin: generated scenes, ResNet-18 of width 16, 64 px, 12 epochs for 200",
    source="scaled by hand; momentum and no blur as in facebookresearch/moco's CIFAR-10 notebook; "
    "MoCo v2 with LEWEL_M, and BYOL with LEWEL_B, were searched: results/suite_searches.toml",
    data={
        "imagenet": "shapes",
        "imagenet100": "shapes",
        "voc": "shapes_voc",
        "coco": "shapes_coco",
    },
    backbone=Backbone(arch="resnet18", stem="small", width=16),
    image_size=64,
    precision="fp32",
    epochs=0.06,
    batch=64,
    lr={
        "moco_v2": 8,
        "moco_v2_bn_head": 4,
        "lewel_m": 4,
        "byol": 0.55,
        "lewel_b": 0.55,
        "instdisc": 4,
        "pcl": 8,
        "pcl_v1": 12,
        "densecl": 8,
        "resim": 8,
        "pixpro": 5,
        "simclr": 16,
        "simsiam": 8,
        "barlow_twins": 20,
        "swav": 16,
        "supervised": 4,
        "moco_v2_p": 4,
    },
    recipes={
        "moco_v2": _MOCO_SCALE,
        "lewel_m": _MOCO_SCALE,
        "byol": {**_BYOL_SCALE, "args.dim": _DIM},
        "lewel_b": {**_BYOL_SCALE, "args.d": _DIM},
        "lewel_b_d512": {**_BYOL_SCALE, "args.d": 256},  # Table 7: d by half, as above
        # SGD without warm-up, whose gains and biases have the rate of all the rest
        "lewel_b_paper_text": {
            **_BYOL_SCALE,
            "args.d": _DIM,
            "optimizer.excluded_lr": 1,
            "schedule.warmup_epochs": 0,
        },
        "lewel_b_d128": {**_BYOL_SCALE, "args.d": 64},
        "lewel_b_d64": {**_BYOL_SCALE, "args.d": 32},
        "moco_v2_p": _MOCO_SCALE,
        "lewel_m_queue16384": {**_MOCO_SCALE, "args.queue": 256},  # a quarter here too
        "simclr": {"augment": NO_BLUR, "args.hidden": 256},
        "simsiam": {"augment": NO_BLUR, "args.dim": 256, "args.hidden": 64},
        "barlow_twins": {"augment": NO_BLUR, "args.dim": 512, "args.hidden": 512},
        "swav": _SWAV_SCALE,
        "swav_b256": {**_SWAV_SCALE, "args.queue": 512, "args.queue_from": 1},
        "supervised": {"augment": NO_BLUR},
        # at a lower temperature the memory of 2,592 images draws all embeddings together
        "instdisc": {"args.m": 256, "args.tau": 0.5},
        "pcl": {**_MOCO_SCALE, **_PCL_SCALE},
        "pcl_v1": {"args.queue": 1024, "ema.start": 0.99, **_PCL_SCALE},
        "densecl": _MOCO_SCALE,
        "resim": {**_MOCO_SCALE, "args.fpn": 64},
        "pixpro": {**_BYOL_SCALE, "args.dim": _DIM, "ema.start": 0.9},
    },
    remarks={
        "1": "In this suite the targets of BYOL and LEWEL_B normalise with the statistics of their "
        "batch, not with averaged ones (EMAN).",
        "6": "Heads of this suite have 128 hidden units (the paper's 2048): embeddings of d = 256 "
        "and 512 lie in a space of 129 dimensions.",
        "7": "In this suite d is half of what the rows say.",
    },
    protocols={
        "linear_lars": _LARS,
        "linear_lars_in100": _LARS,
        "linear_sgd": _SGD,
        "linear_sgd_in100": _SGD,
        "knn": {**_EYE, "ks": [20]},
        "semi_1pct": {**_SEMI, "batch": 24, "backbone_lrs": [1e-3, 1e-2], "head_lrs": [0.1, 1.0]},
        "semi_10pct": {**_SEMI, "batch": 54, "backbone_lrs": [1e-2, 1e-1], "head_lrs": [0.1, 1.0]},
        "voc07_det_c4": {**_C4, "held_out": 40},
        "voc12_seg_fcn_d8": {
            **_DENSE,
            "steps": 2000,
            "scale": [256, 128],
            "ratios": [0.9, 1.5],  # half the size would leave nothing of a texture
            "crop": 64,
            "head_width": 48,
            "aux_width": 32,
            "lrs": [0.025, 0.05],
        },
        "coco_c4_1x": {**_C4, **_COCO},
        "coco_c4_2x": {**_C4, **_COCO, "steps": 480, "milestones": [360, 440]},
        "coco_fpn_1x": {**_FPN, **_COCO},
        "coco_fpn_2x": {**_FPN, **_COCO, "steps": 1200, "milestones": [960, 1120]},
    },
)

_CIFAR_MOCO = {
    "augment": NO_BLUR,
    "args.queue": 4096,
    "args.tau": 0.1,
    "ema.start": 0.99,
    "bn_group": 64,
    "optimizer.weight_decay": 5e-4,
}
# as a share of the images as many clusters as on ImageNet
_CIFAR_PCL = {"args.clusters": "1000,2000,4000", "args.negatives": 4096}
_CIFAR_SWAV = {"augment": NO_BLUR, "args.prototypes": 512}  # as lightly's CIFAR-10 benchmark
_CIFAR_EYE = {"image_size": 32, "resize": 32, "held_out": 5000}

CIFAR10 = Suite(
    name="cifar10",
    label="a one-GPU twin: class folders of 32 px images, ResNet-18 with the 3x3 stem",
    source="facebookresearch/moco CIFAR-10 notebook (batch 512, queue 4096, m .99, tau .1, "
    "wd 5e-4, BN over 64 images)",
    data={"imagenet": "cifar10", "imagenet100": "cifar10"},
    backbone=Backbone(arch="resnet18", stem="cifar"),
    image_size=32,
    precision="fp32",
    batch=512,
    # the rate of MoCo v2 for LEWEL_M, whose paper doubles it
    lr={"simsiam": 0.6, "lewel_m": 0.5, "moco_v2_bn_head": 0.5, "moco_v2_p": 0.5},
    recipes={
        "moco_v2": _CIFAR_MOCO,
        "lewel_m": _CIFAR_MOCO,
        "byol": {"augment": NO_BLUR},
        "lewel_b": {"augment": NO_BLUR},
        "moco_v2_p": _CIFAR_MOCO,
        "lewel_m_queue16384": {**_CIFAR_MOCO, "args.queue": 1024},
        "densecl": _CIFAR_MOCO,
        "resim": _CIFAR_MOCO,
        "pcl": {**_CIFAR_MOCO, **_CIFAR_PCL},
        "pcl_v1": {"args.queue": 4096, "ema.start": 0.99, "bn_group": 64, **_CIFAR_PCL},
        # zhirongw/lemniscate.pytorch @f7cfe29 cifar.py: temperature .1, wd 5e-4
        "instdisc": {"args.tau": 0.1, "optimizer.weight_decay": 5e-4},
        "pixpro": {"augment": NO_BLUR},
        # arXiv 2011.10566 app. D: base lr .03, wd 5e-4, a projector of two layers
        "simsiam": {"augment": NO_BLUR, "args.layers": 2, "optimizer.weight_decay": 5e-4},
        # vturrisi/solo-learn @9187ea3 CIFAR-10: tau .2; 2048-d. Its rates are for a LARS that takes
        # steps of 20 times the size: those here are of the methods' own codes, for theirs
        "simclr": {"augment": NO_BLUR, "args.tau": 0.2},
        "barlow_twins": {"augment": NO_BLUR, "args.dim": 2048, "args.hidden": 2048},
        "swav": _CIFAR_SWAV,
        "swav_b256": {**_CIFAR_SWAV, "args.queue": 3840},
        "supervised": {"augment": NO_BLUR, "optimizer.weight_decay": 5e-4},
    },
    protocols={
        "linear_lars": {**_CIFAR_EYE, "batch": 1024},
        "linear_lars_in100": {**_CIFAR_EYE, "batch": 1024},
        "linear_sgd": {**_CIFAR_EYE},
        "linear_sgd_in100": {**_CIFAR_EYE},
        "knn": {"image_size": 32, "resize": 32},
        "semi_1pct": {**_CIFAR_EYE, "batch": 128},
        "semi_10pct": {**_CIFAR_EYE},
    },
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
            "data": {**like.data, "imagenet": folder, "imagenet100": folder},
        }
    )
