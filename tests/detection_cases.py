"""Detectors to compare with detectron2: cases, weights and images by formula, our run, summaries.

Nothing here needs detectron2; `official_detection.py` runs it on the same.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from official import noise
from torch import Tensor, nn

from lewel_bench.evals.dense import Detection
from lewel_bench.evals.detection.model import Detector, Target
from lewel_bench.pretrain.recipe import Backbone

CLASSES = 3


@dataclass(frozen=True)
class Case:
    """A detector, and how large its images are."""

    protocol: Detection
    spec: Backbone
    sizes: tuple[tuple[int, int], ...]  # height, width
    bare: tuple[int, ...] = ()  # images without objects


def protocol(model: str, masks: bool, **changes: Any) -> Detection:
    """A protocol of these numbers; its schedule and data mean nothing here."""
    limits = {"c4": ((12000, 6000), (2000, 1000)), "fpn": ((2000, 1000), (1000, 1000))}[model]
    settings = {
        "pre_nms": limits[0],
        "post_nms": limits[1],
        "rois": 32,
        "lrs": (0.02,),
        "weight_decays": (1e-4,),
        "milestones": (),
        "min_sizes": (800,),
        "warmup": 0,
        "held_out": 1,
        "steps": 1,
        **changes,
    }
    return Detection(
        name="parity",
        label="parity",
        source="tests",
        data="shapes",
        model=model,
        masks=masks,
        metric="coco",
        **settings,
    )


_R50, _NARROW = Backbone(), Backbone(width=8)
_SMALL = ((192, 160), (160, 192))
_ODD = ((96, 80), (72, 100))
_LARGE = ((512, 640), (512, 600))
_TINY: dict[str, Any] = {
    "rois": 16,
    "rpn_samples": 48,
    "pre_nms": (160, 80),
    "post_nms": (60, 8),
    "head_width": 16,
    "fc_width": 32,
    "anchors": (8, 16, 32, 64, 96),
}
PARITY = {
    "c4_box": Case(protocol("c4", False, post_nms=(2000, 100)), _R50, _SMALL),
    "c4_mask": Case(protocol("c4", True, post_nms=(2000, 100)), _R50, _SMALL),
    "fpn_mask": Case(protocol("fpn", True), _R50, _SMALL),
    "fpn_mask_resnet18": Case(protocol("fpn", True), Backbone(arch="resnet18"), _SMALL),
}
# whether images without objects are treated alike
BARE = {
    "c4_mask": Case(protocol("c4", True, **_TINY), _NARROW, _ODD, bare=(1,)),
    "c4_mask_all": Case(protocol("c4", True, **_TINY), _NARROW, _ODD, bare=(0, 1)),
    "fpn_mask": Case(protocol("fpn", True, **_TINY), _NARROW, _ODD, bare=(0,)),
}
LARGE = {
    "c4_mask": Case(protocol("c4", True), _R50, _LARGE),
    "fpn_mask": Case(protocol("fpn", True), _R50, _LARGE),
}
GOLDEN = {
    "c4_box": Case(protocol("c4", False, **_TINY), _NARROW, _ODD),
    "c4_mask": Case(protocol("c4", True, **_TINY), _NARROW, _ODD),
    "fpn_mask": Case(protocol("fpn", True, **_TINY), _NARROW, _ODD),
}


Random = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass
class Trace:
    """What one training step and one detection gave, by our names."""

    losses: dict[str, Tensor]
    gradient: dict[str, Tensor]
    buffers: dict[str, Tensor]  # running statistics after the step
    detections: list[dict[str, Tensor]]  # of each image: boxes, scores, labels, mask_probs, masks


def images(case: Case) -> list[Tensor]:
    """Coarse colours under noise, (3, h, w) uint8."""
    made = []
    for i, (h, w) in enumerate(case.sizes):
        coarse = noise(f"coarse{i}", 1, 3, 6, 6).float()
        smooth = nn.functional.interpolate(coarse, (h, w), mode="nearest")[0]
        made.append((128 + 70 * smooth + 50 * noise(f"fine{i}", 3, h, w)).clamp(0, 255).byte())
    return made


def targets(case: Case) -> list[Target]:
    """Objects of many sizes, and polygons within their boxes; every other one has two."""
    made = []
    for i, (h, w) in enumerate(case.sizes):
        count = 0 if i in case.bare else 5 + i
        u = noise(f"boxes{i}", count, 4).abs()
        size = torch.stack([w * (0.15 + 0.6 * u[:, 0]), h * (0.15 + 0.6 * u[:, 1])], 1)
        corner = u[:, 2:] * (torch.tensor([w, h]) - size)
        boxes = torch.cat([corner, corner + size], 1).float()
        shapes = [
            [_polygon(f"polygon{i}{j}{k}", boxes[j].double().numpy()) for k in range(1 + j % 2)]
            for j in range(count)
        ]
        labels = (torch.arange(count) + i) % CLASSES
        made.append(Target(boxes, labels, shapes))
    return made


def _polygon(key: str, box: np.ndarray) -> np.ndarray:
    radius = 0.75 + 0.25 * noise(key, 9).numpy()  # of the half sides
    angle = np.arange(9) * 2 * np.pi / 9
    unit = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return ((unit / 2 + 0.5) * (box[2:] - box[:2]) + box[:2]).ravel()


def fill(model: nn.Module, named: Any) -> None:
    """Give every tensor of `model` the value by formula of the name `named(its own)`.

    Running statistics become those of the one training step, so that detection sees features of
    the size that its layers were made for.
    """
    with torch.no_grad():
        for own, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(formula(named(own), tensor.shape).to(tensor))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0


# How large a layer's outputs are: as large as training makes them, so that scores differ, deltas
# move boxes by some tenths and masks are neither empty nor full.
GAIN = {"rpn.deltas": 0.05, "box.deltas": 0.2, "box.score": 1.0, "rpn.objectness": 0.5}


def formula(own: str, shape: torch.Size) -> Tensor:
    """The value of the tensor that we call `own`: the same on every machine."""
    wave = noise(own, *shape)
    if own.endswith("running_var"):
        return 1 + 0.2 * wave
    if len(shape) == 1:
        return 1 + 0.1 * wave if own.endswith("weight") else 0.1 * wave
    gain = next((g for name, g in GAIN.items() if own.startswith(name)), 2**0.5)
    fan_in = shape[0] if shape[-1] == 2 else shape[1:].numel()  # transposed, of stride 2
    return wave * gain * (3 / fan_in) ** 0.5


def native_detector(case: Case, dtype: torch.dtype = torch.float32) -> Detector:
    """Our detector with weights by formula."""
    model = Detector(case.protocol, case.spec, CLASSES)
    fill(model, lambda own: own)
    return model.to(dtype)


def run_native(case: Case, model: Detector, random: Random | None = None) -> Trace:
    model.train()
    with (random or permuted)():
        losses = model(images(case), targets(case))
    sum(losses.values()).backward()
    gradient = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    model.eval()
    detections = [vars(d) for d in model.detect(images(case), originals(case))]
    buffers = {k: b for k, b in model.named_buffers() if "running" in k}
    return Trace(detached(losses), gradient, buffers, detections)


def originals(case: Case) -> list[tuple[int, int]]:
    """The sizes of the images before a resize that did not quite keep the ratio."""
    return [(round(h * 1.37), round(w * 1.35)) for h, w in case.sizes]


@contextlib.contextmanager
def permuted() -> Iterator[None]:
    """Makes torch's permutations follow from their length: they are all that sampling draws."""

    def permutation(count: int, **_: Any) -> Tensor:
        return noise(f"permutation{count}", count).argsort()

    with mock.patch("torch.randperm", permutation):
        yield


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Leaves sampling to torch's generator, from a seed."""
    torch.manual_seed(5)
    yield


def detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in tensors.items()}


Numbers = dict[str, Any]


def summary(trace: Trace) -> Numbers:
    """Losses; norm and a projection of every gradient and statistic; every detection."""
    return {
        "losses": {k: float(v) for k, v in trace.losses.items()},
        "gradient": {k: _outline(k, g) for k, g in sorted(trace.gradient.items())},
        "buffers": {k: _outline(k, b) for k, b in sorted(trace.buffers.items())},
        "found": [_detections(entry) for entry in trace.detections],
    }


def _outline(key: str, tensor: Tensor) -> list[float]:
    flat = tensor.detach().double().flatten()
    return [flat.norm().item(), (flat @ noise(f"{key} projected", len(flat))).item()]


def _detections(result: dict[str, Tensor]) -> Numbers:
    numbers: Numbers = {k: result[k].tolist() for k in ("boxes", "scores", "labels")}
    if result["mask_probs"] is not None:
        numbers["mask_probs"] = [_outline("mask", p) for p in result["mask_probs"]]
        numbers["pixels"] = [[m.sum().item(), *_outline("row", m.sum(1))] for m in result["masks"]]
    return numbers


# Of golden numbers: what other processors may change. Boxes are decoded in single precision, whose
# last digit differs between exponential functions; a ReLU or the edge of a mask may follow.
BOUNDS = {
    "losses": 1e-6,
    "gradient": 1e-3,
    "buffers": 1e-5,
    "labels": 0.0,
    "boxes": 1e-3,  # pixels
    "scores": 1e-5,
    "mask_probs": 1e-3,
    "pixels": 2.0,
}


def distances(result: Numbers, expected: Numbers) -> dict[str, float]:
    """How far two summaries are apart by kind; losses and tensors relative to their size."""
    far = {"losses": _worst([result["losses"]], [expected["losses"]], relative=True)}
    for kind in ("gradient", "buffers"):
        far[kind] = _worst([result[kind]], [expected[kind]], relative=True)
    for kind in expected["found"][0]:
        far[kind] = max(
            _worst(a[kind], b[kind])
            for a, b in zip(result["found"], expected["found"], strict=True)
        )
    return far


def _worst(result: Any, expected: Any, relative: bool = False) -> float:
    """The largest difference; infinite where the structures differ. [norm, projection] are
    relative to the norm."""
    if isinstance(expected, dict):
        if result.keys() != expected.keys():
            return float("inf")
        return max(_worst(result[k], expected[k], relative) for k in expected)
    if isinstance(expected, list):
        if len(result) != len(expected):
            return float("inf")
        if relative and isinstance(expected[0], float):
            return max(abs(a - b) for a, b in zip(result, expected, strict=True)) / expected[0]
        return max(
            (_worst(a, b, relative) for a, b in zip(result, expected, strict=True)), default=0
        )
    return abs(result - expected) / (abs(expected) if relative else 1)
