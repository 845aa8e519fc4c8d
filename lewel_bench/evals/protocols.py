"""The protocols of the paper's tables, as values with their sources.

Where the paper states one learning rate we search around it: the best for a reproduction need not
be the paper's, and the search costs little (heads share one pass). The `_text` variants train the
stated learning rate only. Sources beyond LEWEL (arXiv 2203.14898): SimSiam = arXiv 2011.10566 and
facebookresearch/simsiam @a7bc177, EMAN = arXiv 2101.08482 and
amazon-science/exponential-moving-average-normalization @f79248b, LEWEL's code = LayneH/LEWEL
@4ee47eb, MoCo = facebookresearch/moco @7397dfe, PyContrast = HobbitLong/PyContrast, whose InfoMin
configurations LEWEL's det_configs are.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeGuard

from pydantic import Field

from lewel_bench.evals.classification import Knn, Linear, Semi
from lewel_bench.evals.dense import Detection, Segmentation
from lewel_bench.evals.protocol import Protocol
from lewel_bench.pretrain.recipe import change

# What a spec on disk holds, read by its field `runner`
AnyProtocol = Annotated[
    Linear | Knn | Semi | Detection | Segmentation, Field(discriminator="runner")
]
ENGINES = tuple(dict.fromkeys((*Detection.engines, *Segmentation.engines)))


def is_protocol(value: object) -> TypeGuard[Protocol]:
    """Whether `value`, which an installed distribution offers, is a protocol that a job can run."""
    return isinstance(value, Linear | Knn | Semi | Detection | Segmentation)


# LARS: LEWEL's text says 3.2 "following SimSiam", but SimSiam's text gives .02 B/256 = .32 and its
# code .1 B/256 = 1.6; all three, doublings between, and two beyond so that 3.2 is not an edge.
LINEAR_LARS = Linear(
    name="linear_lars",
    label="linear probe, LARS, 90 epochs",
    source="LEWEL Section 4.1; simsiam/main_lincls.py --lars @a7bc177 (apex LARC, trust .001)",
    optimizer="lars",
    lrs=(0.32, 0.8, 1.6, 3.2, 6.4, 12.8),
    published_lr=3.2,
    batch=4096,
    epochs=90,
)

# SGD: LEWEL and EMAN .4; BYOL's sweep .05-.4; SwAV and Barlow Twins .3; PCL 5; MoCo 30 (all at
# batch 256, BYOL at 1024); steps between and a value beyond, so that no published learning rate but
# BYOL's smallest is an edge.
LINEAR_SGD = Linear(
    name="linear_sgd",
    label="linear probe, SGD, 50 epochs",
    source="LEWEL Section 4.1; LEWEL's and EMAN's main_lincls.py, scripts/srun_lin.sh",
    optimizer="sgd",
    lrs=(0.05, 0.1, 0.2, 0.3, 0.4, 0.8, 1.6, 3.0, 5.0, 10.0, 30.0, 60.0),
    published_lr=0.4,
    batch=256,
    epochs=50,
    milestones=(30, 40),
)

KNN = Knn(
    name="knn",
    label="weighted kNN",
    source="InstDisc (arXiv 1805.01978) Section 3.4: k 200, T .07; k 20 as in mmselfsup 0.9 and "
    "lightly's benchmarks",
)

# 1 %: the paper's 1e-4 / 1.0, and ten and a hundred times that for the backbone, as others train
# it: SwAV .02 / 5, Barlow Twins .005 / .5, VICReg .03 / .08 (20 epochs, no weight decay).
SEMI_1PCT = Semi(
    name="semi_1pct",
    label="fine-tuning on 1 % of the labels",
    source="LEWEL Section 4.2; main_semi.py @4ee47eb (weight decay 1e-4 and 4 processes of 64 are "
    "the script's, not in the text)",
    fraction=0.01,
    backbone_lrs=(1e-4, 1e-3, 1e-2),
    head_lrs=(0.1, 1.0),
    published_lr=(1e-4, 1.0),
)

# 10 %: the paper's .01 / .1 in the middle; EMAN's README .001 / .1, SwAV .01 / .2, VICReg .01 / .1.
SEMI_10PCT = Semi(
    name="semi_10pct",
    label="fine-tuning on 10 % of the labels",
    source=SEMI_1PCT.source,
    fraction=0.1,
    backbone_lrs=(1e-3, 1e-2, 1e-1),
    head_lrs=(0.01, 0.1, 1.0),
    published_lr=(1e-2, 0.1),
)

# Held out of VOC's 16,551 training images: as many as VOC07 val has. Learning rates: MoCo's .02 in
# the middle, LEWEL's "larger" one, and Barlow Twins' .1 (methods with EMA batch norm differ).
VOC07_DET_C4 = Detection(
    name="voc07_det_c4",
    label="VOC detection, Faster R-CNN R50-C4, trainval07+12 to test07, 24k iterations",
    source="LEWEL Section 4.3; MoCo's detection/configs/pascal_voc_R_50_C4_24k_moco.yaml: the same "
    "in DenseCL, PixPro and ReSim; 5 trials as MoCo's README",
    data="voc",
    model="c4",
    masks=False,
    metric="voc07",
    min_sizes=tuple(range(480, 801, 32)),
    steps=24_000,
    milestones=(18_000, 22_000),
    warmup=100,
    pre_nms=(12_000, 6_000),
    post_nms=(2_000, 1_000),
    lrs=(0.01, 0.02, 0.04, 0.06, 0.1),
    weight_decays=(1e-4,),
    published_lr=(0.02, 1e-4),
    held_out=2_510,
    trials=5,
)

# mmseg's config for 20k iterations, which LEWEL, DenseCL and mmselfsup use; MoCo v1 and BYOL train
# another network (output stride 16, dilation 6). SimSiam at lr .01 gives 46 to 48: lr matters.
# Crops are padded with black, as in mmseg 1.x; in 0.x it was the mean colour (voc.padding).
VOC12_SEG_FCN_D8 = Segmentation(
    name="voc12_seg_fcn_d8",
    label="VOC12 segmentation, FCN R50-d8, train_aug to val, 20k iterations",
    source="LEWEL Section 4.3; mmsegmentation fcn_r50-d8_4xb4-20k_voc12aug-512x512 with a plain "
    "ResNet as DenseCL and mmselfsup",
    data="voc",
    steps=20_000,
    lrs=(0.003, 0.01, 0.02, 0.03, 0.05, 0.1),
    weight_decays=(5e-4,),
    published_lr=(0.01, 5e-4),
    held_out=1_000,
)


def _coco(name: str, label: str, source: str, model: Literal["c4", "fpn"], scale: int) -> Detection:
    per_level = model == "fpn"  # its limits are per level, c4 has a single level
    return Detection(
        name=name,
        label=label,
        source=source,
        data="coco",
        model=model,
        masks=True,
        metric="coco",
        min_sizes=tuple(range(640, 801, 32)),
        steps=90_000 * scale,
        milestones=(60_000, 80_000) if scale == 1 else (120_000, 160_000),
        warmup=1_000,
        pre_nms=(2_000, 1_000) if per_level else (12_000, 6_000),
        post_nms=(1_000, 1_000) if per_level else (2_000, 1_000),
        lrs=(0.02, 0.03, 0.04),
        # LEWEL's README calls 1e-4 and 2e-4 learning rates; 1e-4 is detectron2's weight decay
        weight_decays=(1e-4, 2e-4) if scale == 1 else (1e-4,),
        published_lr=(0.02, 1e-4),
        held_out=5_000,
    )


COCO_C4_1X = _coco(
    "coco_c4_1x",
    "COCO Mask R-CNN R50-C4, 1x",
    "LEWEL Section 4.3 and det_configs/coco_R_50_C4_1x.yaml; PyContrast R_50_C4_1x",
    "c4",
    1,
)
COCO_C4_2X = _coco(
    "coco_c4_2x",
    "COCO Mask R-CNN R50-C4, 2x",
    "MoCo's detection/configs/coco_R_50_C4_2x_moco.yaml",
    "c4",
    2,
)
COCO_FPN_1X = _coco(
    "coco_fpn_1x",
    "COCO Mask R-CNN R50-FPN, 1x, 4conv1fc",
    "LEWEL Section 4.3 and det_configs/coco_R_50_FPN_1x_infomin.yaml; PyContrast; DenseCL, PixPro",
    "fpn",
    1,
)
COCO_FPN_2X = _coco(
    "coco_fpn_2x",
    "COCO Mask R-CNN R50-FPN, 2x, 4conv1fc",
    "LEWEL Table 8 and det_configs/coco_R_50_FPN_2x_infomin.yaml; PyContrast",
    "fpn",
    2,
)


def _in100(protocol: Linear) -> Linear:
    """A probe on ImageNet-100 with as many held-out images a class: ten."""
    settings = {
        "name": f"{protocol.name}_in100",
        "label": f"{protocol.label}, ImageNet-100",
        "source": f"LEWEL Section 4.4: as in Section 4.1; {protocol.source}",
        "data": "imagenet100",
        "held_out": 1_000,
    }
    probe: Linear = change(protocol, settings)
    return probe


def _text(protocol: Linear) -> Linear:
    settings = {"name": f"{protocol.name}_text", "label": f"{protocol.label}, the paper's lr only"}
    text: Linear = change(protocol, {**settings, "lrs": (protocol.published_lr,)})
    return text


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            LINEAR_LARS,
            _text(LINEAR_LARS),
            LINEAR_SGD,
            _text(LINEAR_SGD),
            _in100(LINEAR_LARS),
            _in100(LINEAR_SGD),
            KNN,
            SEMI_1PCT,
            SEMI_10PCT,
            VOC07_DET_C4,
            VOC12_SEG_FCN_D8,
            COCO_C4_1X,
            COCO_C4_2X,
            COCO_FPN_1X,
            COCO_FPN_2X,
        )
    }
)
