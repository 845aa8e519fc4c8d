"""The layouts of checkpoints that other projects write: where the backbone is, and what is no part
of it. A name is given without `module` parts, which DistributedDataParallel and averages add.

A new one is a few lines here, or a TOML file with the same fields for `--format FILE.toml`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lewel_bench.evals.checkpoints.pixels import Pixels
from lewel_bench.value import Value

Text = Annotated[str, Field(min_length=1)]

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
KEY = re.compile(
    rf"conv1\.weight|bn1\.{NORM}|layer[1-4]\.\d+\."
    rf"(conv[1-3]\.weight|bn[1-3]\.{NORM}|downsample\.(0\.weight|1\.{NORM}))"
)


class Format(Value):
    """One layout.

    `roots` are the places in a file where its names may begin; elsewhere in the file lies the state
    of an optimizer. `networks` maps each network that a file may hold to the beginning of its
    names; the first that is there is taken unless another is asked for. Names that begin as one of
    `heads` are no part of a backbone; `needs` are beginnings of names, or after a slash names at
    the top, one of which must be there: they tell this layout from the others. `rename` are
    patterns and what becomes of them, one after another, until the name is torchvision's. `stride`
    is the convolution of a bottleneck that has it; `stem` is that of the networks, which a 3x3
    convolution alone does not say; `foreign_stem` says why a 3x3 stem of this project is none of
    ours; with `absorbed` the norms may lack statistics, which are in their
    scales and offsets. `allows` are globals that may be in the file.
    """

    source: Text
    roots: Annotated[tuple[str, ...], Field(min_length=1)] = ("state_dict.",)
    networks: Annotated[dict[Text, str], Field(min_length=1)]
    heads: tuple[Text, ...] = ()
    needs: tuple[Text, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    pixels: Pixels = Pixels()
    stride: Literal["3x3", "1x1"] = "3x3"
    stem: Literal["imagenet", "cifar", "small"] | None = None
    foreign_stem: str = ""
    absorbed: bool = False
    allows: tuple[Text, ...] = ()

    @field_validator("rename")
    @classmethod
    def _patterns(cls, value: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        for pattern, becomes in value:
            try:
                re.compile(pattern).sub(becomes, "")
            except (re.error, IndexError) as error:
                rule = f"{pattern!r} to {becomes!r}"
                raise ValueError(f"{rule} is no regular expression: {error}") from None
        return value

    def keys(self, names: Sequence[str]) -> list[str]:
        """Torchvision's names of names within a network; what fits no pattern stays."""
        return [self._key(name) for name in names]

    def _key(self, name: str) -> str:
        for pattern, becomes in self.rename:
            name = re.sub(pattern, becomes, name)
        return name


# nn.Sequential(*list(resnet.children())[:-1]), as lightly's examples cut a ResNet
NUMBERED = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{3 + n}\.(?=\d)", f"layer{n}.") for n in (1, 2, 3, 4)),
)
# transformers' ResNet: modeling_resnet.py of huggingface/transformers, as in microsoft/resnet-50
TRANSFORMERS = (
    (r"^resnet\.(?=embedder\.|encoder\.)", ""),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    *((rf"^encoder\.stages\.{n - 1}\.layers\.", f"layer{n}.") for n in (1, 2, 3, 4)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    *((rf"\.layer\.{n - 1}\.convolution\.", f".conv{n}.") for n in (1, 2, 3)),
    *((rf"\.layer\.{n - 1}\.normalization\.", f".bn{n}.") for n in (1, 2, 3)),
)
# detectron2 counts stages from the stem, and keeps a norm inside its convolution
STAGED = (
    (r"^(backbone\.bottom_up|backbone|roi_heads)\.(?=stem\.|res[2-5]\.)", ""),
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    *((rf"^res{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
    (r"\.conv([123])\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)
# Caffe2's names of the same, as detectron2's c2_model_loading.py reads them
CAFFE2 = (
    ("_", "."),
    (r"^(res\.)?conv1\.bn\.", "bn1."),
    (r"\.branch2a\.bn\.", ".bn1."),
    (r"\.branch2b\.bn\.", ".bn2."),
    (r"\.branch2c\.bn\.", ".bn3."),
    (r"\.branch1\.bn\.", ".downsample.1."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    (r"\.branch1\.", ".downsample.0."),
    (r"\.(w|s)$", ".weight"),
    (r"\.b$", ".bias"),
    (r"\.rm$", ".running_mean"),
    (r"\.riv$", ".running_var"),
    *((rf"^res{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
)
# as detectron2's default configuration gives them to its networks: 0 to 255, each less its mean
CAFFE_PIXELS = Pixels(order="BGR", std=(1 / 255, 1 / 255, 1 / 255))
EMA_HOOK = "ema_"  # copies that mmcv's EMAHook registers: ema_backbone_conv1_weight
MMENGINE = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
)
LIGHTNING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)

MOCO = Format(
    source="facebookresearch/moco @7397dfe moco/builder.py, main_moco.py",
    networks={"query": "encoder_q.", "key": "encoder_k."},
    heads=("encoder_q.fc.", "encoder_k.fc.", "queue", "queue_ptr"),
)
DETECTRON2 = Format(
    source="facebookresearch/detectron2 @02b5c4e modeling/backbone/resnet.py, "
    "tools/convert-torchvision-to-d2.py; facebookresearch/moco @7397dfe "
    "detection/convert-pretrain-to-detectron2.py",
    roots=("model.",),
    networks={"backbone": ""},
    heads=(
        *("stem.fc.", "fc.", "proposal_generator.", "roi_heads.box", "roi_heads.mask"),
        *("backbone.fpn_", "pixel_mean", "pixel_std"),
    ),
    needs=("stem.conv1.", "backbone."),
    rename=STAGED,
)
TORCHVISION = Format(
    source="pytorch/vision torchvision/models/resnet.py; also what DenseCL, Barlow Twins, DINO, "
    "OpenSelfSup and VISSL's converter write of a backbone alone",
    roots=("", "state_dict.", "model.", "model_state_dict."),
    networks={"backbone": ""},
    heads=("fc.",),
)
# from the special to the general: the first that takes a whole file is its format
FORMATS: dict[str, Format] = {
    "resim": MOCO.model_copy(
        update={
            "source": "Tete-Xiao/ReSim @b6a36ee moco/builder.py, moco/models.py",
            "heads": (*MOCO.heads, "encoder_q.fpn", "encoder_k.fpn"),
            "needs": ("encoder_q.fpn",),
        }
    ),
    "moco": MOCO,
    # one layout; PCL's queue is shorter, which says nothing
    "pcl": MOCO.model_copy(
        update={"source": "salesforce/PCL @964da1f pcl/builder.py, main_pcl.py"},
    ),
    "lewel": Format(
        source="LayneH/LEWEL @4ee47eb models/lewel.py, main.py",
        networks={"online": "online_net.backbone.", "target": "target_net.backbone."},
        heads=("online_net.neck.", "target_net.neck.", "predictor.", "predictor_obj."),
        needs=("online_net.neck.proj_obj.",),
    ),
    "eman": Format(
        source="amazon-science/exponential-moving-average-normalization @f79248b models/byol.py",
        networks={"online": "online_net.backbone.", "target": "target_net.backbone."},
        heads=("online_net.neck.mlp.", "target_net.neck.mlp.", "predictor."),
        needs=("online_net.neck.mlp.",),
    ),
    "densecl": Format(
        source="WXinlong/DenseCL @b64bbb6 openselfsup/models/densecl.py",
        networks={"query": "encoder_q.0.", "key": "encoder_k.0.", "backbone": "backbone."},
        heads=("encoder_q.1.", "encoder_k.1.", "queue", "head.", EMA_HOOK),
        needs=("queue2",),
        allows=MMENGINE,
    ),
    "openselfsup": Format(
        source="open-mmlab/OpenSelfSup, as in WXinlong/DenseCL @b64bbb6 openselfsup/models",
        networks={
            "query": "encoder_q.0.",
            "online": "online_net.0.",
            "backbone": "backbone.",
            "key": "encoder_k.0.",
            "target": "target_net.0.",
        },
        heads=(
            *("encoder_q.1.", "encoder_k.1.", "online_net.1.", "target_net.1."),
            *("queue", "neck.", "head.", EMA_HOOK),
        ),
        needs=("encoder_q.0.", "online_net.0."),
        allows=MMENGINE,
    ),
    "simsiam": Format(
        source="facebookresearch/simsiam @a7bc177 simsiam/builder.py, main_simsiam.py",
        networks={"online": "encoder."},
        heads=("encoder.fc.", "predictor."),
        needs=("encoder.fc.",),
    ),
    "swav": Format(
        source="facebookresearch/swav @06b1b7c src/resnet50.py, main_swav.py; the standard "
        "deviation of red is .228 in src/multicropdataset.py and eval_linear.py",
        roots=("state_dict.", ""),
        networks={"backbone": ""},
        heads=("projection_head.", "prototypes."),
        needs=("projection_head.",),
        pixels=Pixels(std=(0.228, 0.224, 0.225)),
    ),
    "barlow_twins": Format(
        source="facebookresearch/barlowtwins @8e8d284 main.py",
        roots=("model.",),
        networks={"online": "backbone."},
        heads=("projector.", "bn."),
        needs=("projector.",),
    ),
    "pixpro": Format(
        source="zdaxie/PixPro @e390d6b contrast/models/PixPro.py, main_pretrain.py",
        roots=("model.",),
        networks={"online": "encoder.", "target": "encoder_k."},
        heads=("projector", "predictor.", "value_transform."),
        needs=("projector_k.",),
    ),
    "pycontrast": Format(
        source="HobbitLong/PyContrast @84f94ea networks/build_backbone.py, "
        "learning/contrast_trainer.py",
        roots=("",),
        networks={"online": "model.encoder.", "momentum": "model_ema.encoder."},
        heads=("model.head", "model_ema.head", "contrast.", "optimizer.", "amp.", "scheduler."),
        needs=("model.head.",),
    ),
    "instdisc": Format(
        source="zhirongw/lemniscate.pytorch @f7cfe29 models/resnet.py, main.py",
        networks={"backbone": ""},
        heads=("fc.",),
        needs=("/lemniscate",),
        allows=(
            *("lib.NCEAverage.NCEAverage", "lib.LinearAverage.LinearAverage"),
            *(
                "lib.alias_multinomial.AliasMethod",
                "torch.nn.backends.thnn._get_thnn_function_backend",
            ),
        ),
    ),
    "dino": Format(
        source="facebookresearch/dino @7c446df main_dino.py",
        roots=("",),
        networks={"teacher": "teacher.backbone.", "student": "student.backbone."},
        heads=(
            *("teacher.head.", "student.head.", "dino_loss."),
            *("optimizer.", "fp16_scaler."),
        ),
        needs=("teacher.head.", "student.head."),
    ),
    "vissl": Format(
        source="facebookresearch/vissl @09270ed models/trunks/resnext.py, models/base_ssl_model.py",
        roots=("classy_state_dict.base_model.model.", "base_model.model."),
        networks={"trunk": "trunk._feature_blocks."},
        heads=("heads.",),
    ),
    "solo_learn": Format(
        source="vturrisi/solo-learn @9187ea3 solo/methods/base.py",
        networks={
            "online": "backbone.",
            "momentum": "momentum_backbone.",
            "online (old)": "encoder.",
            "momentum (old)": "momentum_encoder.",
        },
        heads=(
            *("backbone.fc.", "encoder.fc.", "momentum_backbone.fc.", "projector.", "predictor."),
            *("classifier.", "prototypes.", "queue", "momentum_projector."),
            *("momentum_classifier.", "dino_loss_func.", "head.", "momentum_head."),
        ),
        needs=("classifier.",),
        foreign_stem="solo-learn pads its 3x3 convolution by 2 and its pixels have CIFAR's mean",
        allows=LIGHTNING,
    ),
    "stable_pretraining": Format(
        source="rbalestr-lab/stable-pretraining stable_pretraining/module.py, "
        "backbone/utils.py (TeacherStudentWrapper)",
        networks={
            "backbone": "backbone.",
            "teacher": "backbone.teacher.",
            "student": "backbone.student.",
        },
        heads=(
            *("callbacks_modules.", "callbacks_metrics.", "projector.", "predictor."),
            *("_callbacks_modules.", "_callbacks_metrics.", "classifier.", "prototypes"),
            *("backbone.fc.", "backbone.teacher.fc.", "backbone.student.fc.", "queue"),
        ),
        needs=(
            *("callbacks_modules.", "callbacks_metrics."),
            *("_callbacks_modules.", "_callbacks_metrics."),
        ),
        allows=LIGHTNING,
    ),
    "lightly": Format(
        source="lightly-ai/lightly examples/pytorch_lightning, benchmarks/imagenet/resnet50",
        networks={
            "backbone": "backbone.",  # which it evaluates; in its MoCo and DINO the slow one
            "query": "query_backbone.",
            "student": "student_backbone.",
            "teacher": "teacher_backbone.",
            "momentum": "backbone_momentum.",
        },
        heads=(
            *("projection_head", "prediction_head", "online_classifier.", "prototypes"),
            *("student_projection", "student_prediction", "student_head", "teacher_projection"),
            *("teacher_head", "query_projection", "query_prediction", "key_projection"),
            *("criterion.", "memory_bank", "start_queue"),
        ),
        needs=("/pytorch-lightning_version",),
        rename=NUMBERED,
        allows=LIGHTNING,
    ),
    "mmselfsup": Format(
        source="open-mmlab/mmselfsup @db861f3 models/algorithms; mmpretrain has the same names",
        networks={
            "online": "backbone.",
            "momentum": "encoder_k.0.",
            "target": "target_net.0.",
        },
        heads=(
            *("neck.", "head.", "queue", "predictor.", "data_preprocessor.", "prototypes."),
            *("encoder_k.1.", "encoder_k.steps", "target_net.1.", "target_net.steps"),
            *("encoder.0.", "encoder.1."),  # SimSiam's: the backbone and the neck once more
            EMA_HOOK,
        ),
        needs=("/meta", "neck.", "head."),
        allows=MMENGINE,
    ),
    "detectron2": DETECTRON2,
    "detectron2_caffe": DETECTRON2.model_copy(
        update={
            "source": "facebookresearch/detectron2 @02b5c4e config/defaults.py: "
            "MODEL.RESNETS.STRIDE_IN_1X1, INPUT.FORMAT, MODEL.PIXEL_STD",
            "stride": "1x1",
            "pixels": CAFFE_PIXELS,
            "absorbed": True,
        }
    ),
    "caffe2": Format(
        source="facebookresearch/detectron2 @02b5c4e checkpoint/c2_model_loading.py, "
        "detection_checkpoint.py (MSRA's R-50.pkl and R-101.pkl)",
        roots=("", "blobs.", "model."),
        networks={"backbone": ""},
        heads=("fc1000_", "pred_", "conv1_b"),  # detectron2 leaves the stem's bias out, too
        needs=("res2_0_branch2a_w",),
        rename=CAFFE2,
        stride="1x1",
        pixels=CAFFE_PIXELS,
        absorbed=True,
    ),
    "timm_training": Format(
        source="huggingface/pytorch-image-models timm/utils/checkpoint_saver.py; its "
        "models/_helpers.py takes the averaged weights",
        roots=("",),
        networks={"ema": "state_dict_ema.", "model": "state_dict."},
        heads=("state_dict_ema.fc.", "state_dict.fc.", "optimizer.", "amp_scaler."),
        needs=("state_dict_ema.",),
    ),
    "torchvision_training": Format(
        source="pytorch/vision references/classification/train.py",
        roots=("",),
        networks={"model": "model.", "ema": "model_ema."},
        heads=("model.fc.", "model_ema.fc.", "model_ema.n_averaged", "optimizer.", "scaler."),
        needs=("model_ema.",),
    ),
    "torchvision": TORCHVISION,
    "transformers": Format(
        source="huggingface/transformers models/resnet/modeling_resnet.py (microsoft/resnet-50)",
        roots=("", "state_dict.", "model."),
        networks={"backbone": ""},
        heads=("classifier.",),
        needs=("resnet.embedder.", "embedder."),
        rename=TRANSFORMERS,
    ),
    "sequential": Format(
        source="nn.Sequential(*list(resnet.children())[:-1]) of torchvision's, as it is and as the "
        "backbone of a model in lightly's tutorials for PyTorch without Lightning",
        roots=("", "state_dict.", "model.", "model_state_dict."),
        networks={"backbone": "backbone.", "momentum": "backbone_momentum.", "whole": ""},
        heads=("projection_head", "prediction_head", "prototypes"),
        needs=("0.weight", "backbone.0.weight"),
        rename=NUMBERED,
    ),
    "timm": TORCHVISION.model_copy(
        update={"source": "huggingface/pytorch-image-models timm/models/resnet.py"}
    ),
}
ALLOWED = frozenset(name for layout in FORMATS.values() for name in layout.allows)
