"""Every pre-training recipe, a value with its source.

A family (`lewel_b`) is a method with its settings; a recipe is a family at a number of epochs on a
data set: `lewel_b_200ep` on ImageNet-1K, `lewel_b_in100_240ep` on ImageNet-100. Where the paper's
text and the released code disagree, both exist by name; `lewel-bench ls conflicts` says which one
is the default and why. Learning rates are absolute, at the listed batch.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lewel_bench.pretrain.ablations import ABLATIONS
from lewel_bench.pretrain.recipe import Ema, Optimizer, Recipe, Schedule, change

LEWEL = "LEWEL, CVPR 2022 (arXiv 2203.14898)"
CODE = "LayneH/LEWEL @4ee47eb"
MOCO = "facebookresearch/moco @7397dfe main_moco.py; arXiv 2003.04297"
BYOL = "arXiv 2006.07733; google-deepmind/deepmind-research @f5de0ed byol/configs"
SIMCLR = "arXiv 2002.05709; google-research/simclr @383d414 tf2/ (lr .3 x batch/256, LARS)"
SIMSIAM = "arXiv 2011.10566; facebookresearch/simsiam @a7bc177 main_simsiam.py"
BARLOW = "arXiv 2103.03230; facebookresearch/barlowtwins @8e8d284 main.py"
SWAV = "arXiv 2006.09882; facebookresearch/swav @06b1b7c main_swav.py"
INSTDISC = "arXiv 1805.01978; HobbitLong/CMC @7b227be README (the run behind Table 1)"
PCL = "arXiv 2005.04966; salesforce/PCL @964da1f main_pcl.py, README"
DENSECL = "arXiv 2011.09157; WXinlong/DenseCL @b64bbb6 configs/selfsup/densecl"
RESIM = "arXiv 2103.12902; Tete-Xiao/ReSim @b6a36ee README (ReSim-FPN)"
PIXPRO = "arXiv 2011.10043; zdaxie/PixPro @e390d6b tools/pixpro_base_r50_*ep.sh"
EMAN = "arXiv 2101.08482; EMAN @f79248b README"

MOMENTUM_999 = Ema(start=0.999)
EMAN_98 = Ema(start=0.98, schedule="cosine", buffers=True)
WARM_EPOCH = Schedule(warmup_epochs=10, cosine_per="epoch")


def _sgd(lr: float, weight_decay: float = 1e-4) -> Optimizer:
    return Optimizer(name="sgd", lr=lr, weight_decay=weight_decay)


def _lars(lr: float, weight_decay: float = 1e-6, exclude: str = "bias_and_norm") -> Optimizer:
    return Optimizer.model_validate(
        {"name": "lars", "lr": lr, "weight_decay": weight_decay, "exclude": exclude}
    )


# MoCo's batch norm sees 256/8 = 32 images a GPU; EMAN's and LEWEL_B's 1024/8 = 128.
_MOCO_SETTING: dict[str, Any] = {
    "batch": 256,
    "bn_group": 32,
    "ema": MOMENTUM_999,
    "augment": "moco_v2",
}
_EMAN_SETTING: dict[str, Any] = {
    "batch": 1024,
    "bn_group": 128,
    "optimizer": _lars(3.6),
    "schedule": WARM_EPOCH,
    "ema": EMAN_98,
    "augment": "byol_eman",
    "precision": "fp16",
}
# Section 3.3: SyncBN at 400 epochs; the numbers are those of scripts/srun_lewelb.sh
_SYNC_SETTING: dict[str, Any] = {
    **_EMAN_SETTING,
    "batch": 4096,
    "bn_group": None,
    "optimizer": _lars(7.2),
    "ema": Ema(start=0.996, schedule="cosine"),
}
_LEWEL_M: dict[str, Any] = {
    "method": "lewel_m",
    **_MOCO_SETTING,
    "optimizer": _sgd(0.06),
    "precision": "fp16",
}
_MOCO_V2: dict[str, Any] = {"method": "moco_v2", **_MOCO_SETTING, "optimizer": _sgd(0.03)}
_BN_HEAD: dict[str, Any] = {**_LEWEL_M, "method": "moco_v2", "args": {"head_norm": True}}
_LEWEL_B: dict[str, Any] = {"method": "lewel_b", **_EMAN_SETTING}
_BYOL: dict[str, Any] = {"method": "byol", **_EMAN_SETTING}
_BYOL_ORIGINAL: dict[str, Any] = {
    "method": "byol",
    "args": {"bias": True},
    "batch": 4096,
    "schedule": Schedule(warmup_epochs=10, cosine_per="step"),
    "ema": Ema(start=0.99, schedule="cosine"),
    "augment": "byol_paper",
}
_B512: dict[str, Any] = {"batch": 512, "bn_group": 64}

_recipes: dict[str, Recipe] = {}


def _add(
    family: str,
    label: str,
    epochs: tuple[int, ...],
    source: str,
    setting: dict[str, Any],
    **over: Any,
) -> None:
    for e in epochs:
        name = f"{family}_{e}ep"
        fields = {**setting, **over, "name": name, "label": label, "source": source, "epochs": e}
        _recipes[name] = Recipe(**fields)


_add("moco_v2", "MoCo v2", (100, 200), f"{MOCO}; {LEWEL} Table 1", _MOCO_V2)
_add("moco_v2", "MoCo v2", (400, 800), f"{MOCO}; 400 epochs are not in the paper", _MOCO_V2)
_add(
    "moco_v2_amp",
    "MoCo v2, AMP",
    (100,),
    f"{MOCO}; mixed precision as all of {LEWEL} Table 9",
    _MOCO_V2,
    precision="fp16",
)
_add(
    "moco_v2_bn_head",
    "MoCo v2, BN head, lr .06",
    (100, 200),
    "control: LEWEL_M's lr and head norm without its aligned branch",
    _BN_HEAD,
)
_add("lewel_m", "LEWEL_M", (100, 200), f"{LEWEL} Sections 3.3, 4.1", _LEWEL_M)
_add("lewel_m", "LEWEL_M", (400,), f"{LEWEL} Section 3.3; 400 epochs not in the paper", _LEWEL_M)
_add(
    "lewel_m_h1",
    "LEWEL_M, h=1",
    (100, 200),
    f"{LEWEL} Section 3.4 (h=1)",
    _LEWEL_M,
    args={"h": 1},
)
_add("byol", "BYOL (EMAN)", (100, 200), f"{LEWEL} Table 1 (BYOL*); {EMAN}", _BYOL)
_add(
    "byol",
    "BYOL (SyncBN)",
    (400,),
    f"LEWEL_B's 400-epoch setting without the aligned branch; {CODE} scripts/srun_lewelb.sh",
    {"method": "byol", **_SYNC_SETTING},
)
_add(
    "byol_eman",
    "BYOL-EMAN, batch 512",
    (100, 200),
    EMAN,
    _BYOL,
    **_B512,
    precision="fp32",
    optimizer=_lars(1.8),
)
_add("byol_original", "BYOL (original)", (100,), BYOL, _BYOL_ORIGINAL, optimizer=_lars(0.45 * 16))
_add(
    "byol_original",
    "BYOL (original)",
    (200, 300, 400),
    f"{BYOL}: its 300-epoch preset, lr .3 x 4096/256",
    _BYOL_ORIGINAL,
    optimizer=_lars(0.3 * 16),
)
_add(
    "byol_original",
    "BYOL (original)",
    (800, 1000),
    f"{BYOL}: its 1000-epoch preset, lr .2 x 4096/256",
    _BYOL_ORIGINAL,
    optimizer=_lars(0.2 * 16, 1.5e-6),
    ema=Ema(start=0.996, schedule="cosine"),
)
_add(
    "lewel_b",
    "LEWEL_B",
    (100, 200),
    f"{LEWEL}; {CODE} pretrain_logs/LEWEL_B-100ep.txt (lr 3.6, batch 1024, wd 1e-6)",
    _LEWEL_B,
)
_add(
    "lewel_b",
    "LEWEL_B",
    (400,),
    f"{LEWEL} Section 3.3 (SyncBN); {CODE} scripts/srun_lewelb.sh",
    {"method": "lewel_b", **_SYNC_SETTING},
)
_add(
    "lewel_b_script",
    "LEWEL_B, wd 1.5e-6",
    (100, 200),
    f"{CODE} scripts/srun_lewelb_eman.sh (wd 1.5e-6)",
    _LEWEL_B,
    optimizer=_lars(3.6, 1.5e-6),
)
_add(
    "lewel_b_log",
    "LEWEL_B, head gains decayed",
    (100, 200),
    f"{CODE} pretrain_logs/LEWEL_B-100ep.txt: the gains of the heads' norms are in the decayed, "
    "LARS-adapted group",
    _LEWEL_B,
    optimizer=_lars(3.6, exclude="log"),
)
_add(
    "lewel_b_b512",
    "LEWEL_B, batch 512",
    (100, 200),
    f"{LEWEL} Section 3.3 (lr 1.8, batch 512, wd 1e-6), with LARS as the code",
    _LEWEL_B,
    **_B512,
    optimizer=_lars(1.8),
)
_add(
    "lewel_b_paper_text",
    "LEWEL_B, SGD",
    (100, 200),
    f"{LEWEL} Section 3.3 to the letter: SGD, lr 1.8, batch 512, no warm-up",
    _LEWEL_B,
    **_B512,
    optimizer=Optimizer(name="sgd", lr=1.8, weight_decay=1e-6, exclude="bias_and_norm"),
    schedule=Schedule(),
)

# Methods that the paper cites: as their authors ran them
_STEPS = Schedule(decay_at=(0.6, 0.8))  # 120 and 160 of 200 epochs
_PIXPRO: dict[str, Any] = {
    "method": "pixpro",
    "batch": 1024,
    "optimizer": _lars(4.0, 1e-5),
    # warm-up from a hundredth; the cosine ends at 1e-6
    "schedule": Schedule(warmup_epochs=5, cosine_per="step", start=0.01, end=1e-6 / 4.0),
    "ema": Ema(start=0.99, schedule="cosine"),
    "augment": "pixpro",
    "precision": "fp16",
}
_add(
    "instdisc",
    "InstDisc",
    (200,),
    f"{INSTDISC}: NCE, 4096 noise samples, 4 GPUs",
    {"method": "instdisc", "batch": 256, "bn_group": 64, "augment": "instdisc"},
    optimizer=_sgd(0.03),
    schedule=_STEPS,
)
_PCL: dict[str, Any] = {"method": "pcl", **_MOCO_SETTING, "optimizer": _sgd(0.03)}
_add("pcl", "PCL", (200,), f"{PCL} (v2)", _PCL)
_add(
    "pcl_v1",
    "PCL v1",
    (200,),
    f"{PCL} (v1)",
    _PCL,
    args={"head": "linear", "tau": 0.1},
    augment="pcl_v1",
    schedule=_STEPS,
)
_add("densecl", "DenseCL", (200,), DENSECL, {**_MOCO_V2, "method": "densecl"})
_add("resim", "ReSim", (200,), RESIM, {**_MOCO_V2, "method": "resim", "augment": "resim"})
_add("pixpro", "PixPro", (100, 400), PIXPRO, _PIXPRO)
_add(
    "pixpro_instance",
    "PixPro, instance branch",
    (100, 400),
    f"{PIXPRO} with --pixpro-ins-loss-weight 1",
    _PIXPRO,
    args={"alpha": 1.0},
)

# The same, of methods without a momentum encoder, and supervised training
_STEP_10 = Schedule(warmup_epochs=10, cosine_per="step")
_SIMCLR: dict[str, Any] = {
    "method": "simclr",
    "batch": 4096,
    "optimizer": _lars(0.3 * 16),
    "schedule": _STEP_10,
    "augment": "simclr",
}
_SIMSIAM: dict[str, Any] = {
    "method": "simsiam",
    "batch": 512,
    "optimizer": Optimizer(name="sgd", lr=0.05 * 2, weight_decay=1e-4, constant="h."),
    "augment": "moco_v2",
}
_BARLOW: dict[str, Any] = {
    "method": "barlow_twins",
    "batch": 2048,
    # .2 for weights and .0048 for biases and norms, each x 2048/256
    "optimizer": Optimizer(
        name="lars", lr=1.6, weight_decay=1e-6, exclude="bias_and_norm", excluded_lr=0.0048 / 0.2
    ),
    "schedule": Schedule(warmup_epochs=10, cosine_per="step", end=0.001),
    "augment": "barlow_twins",
    "precision": "fp16",
}
_SWAV: dict[str, Any] = {
    "method": "swav",
    "batch": 4096,
    "optimizer": _lars(4.8, exclude="none"),
    "schedule": Schedule(warmup_epochs=10, cosine_per="step", start=0.3 / 4.8, end=0.001),
    "augment": "swav",
    "precision": "fp16",
}
_add("simclr", "SimCLR", (100, 200, 400, 800, 1000), SIMCLR, _SIMCLR)
_add(
    "simclr_3_layers",
    "SimCLR, 3-layer projector",
    (100, 200, 400, 800),
    f"{SIMCLR}; with the projector of SimSiam's reproduction ({SIMSIAM} Table 4)",
    _SIMCLR,
    args={"layers": 3},
)
_add("simsiam", "SimSiam", (100, 200, 400, 800), SIMSIAM, _SIMSIAM)
_add("barlow_twins", "Barlow Twins", (100, 200, 300, 1000), BARLOW, _BARLOW)
_add("swav", "SwAV", (100, 200, 400, 800), f"{SWAV} scripts/swav_*ep_pretrain.sh", _SWAV)
_add(
    "swav_2crop",
    "SwAV, two crops",
    (100, 200, 400),
    f"{SWAV} scripts/swav_400ep_2x224_pretrain.sh",
    _SWAV,
    augment="swav_2crop",
)
_add(
    "swav_2crop_3_layers",
    "SwAV, two crops, 3-layer projector",
    (100, 200, 400, 800),
    f"{SWAV}; with the views and projector of SimSiam's reproduction ({SIMSIAM} Table 4)",
    _SWAV,
    augment="swav_2crop",
    args={"layers": 3},
)
_add(
    "swav_b256",
    "SwAV, batch 256, queue",
    (200, 400),
    f"{SWAV} scripts/swav_*ep_bs256_pretrain.sh",
    _SWAV,
    batch=256,
    args={"queue": 3840},
    optimizer=_lars(0.6, exclude="none"),
    schedule=Schedule(cosine_per="step", end=0.001),
)
_add(
    "moco_v2_symmetric",
    "MoCo v2, symmetric",
    (100, 200, 400, 800),
    f"{SIMSIAM} Table 4; the loss of MoCo's CIFAR-10 notebook",
    _MOCO_V2,
    args={"symmetric": True},
)
_add(
    "supervised",
    "Supervised",
    (90,),
    "torchvision references/classification: SGD, lr .1 at batch 256, x .1 at 30 and 60 of 90",
    {"method": "supervised", "batch": 256, "bn_group": 32, "augment": "supervised"},
    optimizer=_sgd(0.1),
    schedule=Schedule(decay_at=(1 / 3, 2 / 3)),
)

# ImageNet-100, 240 epochs, doubled lr (Section 3.3, for LEWEL; ours for the baselines too)
_IN100: dict[str, Any] = {"data": "imagenet100"}
_OF_LEWEL, _OURS = "doubled lr", "lr doubled by us, as LEWEL's"
for _family, _label, _setting, _optimizer, _lr in (
    ("moco_v2", "MoCo v2", _MOCO_V2, _sgd(0.06), _OURS),
    ("lewel_m", "LEWEL_M", _LEWEL_M, _sgd(0.12), _OF_LEWEL),
    ("byol", "BYOL (EMAN)", _BYOL, _lars(7.2), _OURS),
    ("lewel_b", "LEWEL_B", _LEWEL_B, _lars(7.2), _OF_LEWEL),
):
    _add(
        f"{_family}_in100",
        _label,
        (240,),
        f"{LEWEL} Section 3.3: ImageNet-100, 240 epochs; {_lr}",
        _setting,
        **_IN100,
        optimizer=_optimizer,
    )


_add(
    "moco_v2_bn_head_in100",
    "MoCo v2, BN head, lr .12",
    (240,),
    "control: LEWEL_M's lr and head norm on ImageNet-100 without its aligned branch",
    _BN_HEAD,
    **_IN100,
    optimizer=_sgd(0.12),
)
for _family, _recipe in ABLATIONS.items():
    _name = f"{_family}_in100_240ep"
    _fields = {"name": _name, "label": _recipe.label, "source": _recipe.source, **_recipe.settings}
    _recipes[_name] = change(_recipes[f"{_recipe.of}_in100_240ep"], _fields)
RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes)


def family(name: str) -> str:
    """The family of a recipe's name: `lewel_b` of `lewel_b_200ep`."""
    return name.rsplit("_", 1)[0]


_families: dict[str, tuple[str, ...]] = {}
for _name in RECIPES:
    _families[family(_name)] = (*_families.get(family(_name), ()), _name)
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(_families)
