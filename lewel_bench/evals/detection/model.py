"""Faster and Mask R-CNN on a ResNet, C4 and FPN: what detectron2 computes with the configurations
of MoCo (C4, with a norm after res5) and InfoMin (FPN, 4conv1fc, a norm in every head).

Boxes are (x1, y1, x2, y2) in pixels; images are RGB in 0..255.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lewel_bench.evals.detection import boxes as box_ops
from lewel_bench.evals.detection import masks as mask_ops
from lewel_bench.evals.detection import roi
from lewel_bench.evals.detection.boxes import Size, pool
from lewel_bench.evals.detection.heads import FPN, BoxPredictor, Mean, conv_box_head, mask_head
from lewel_bench.evals.detection.masks import Pixels, Polygons
from lewel_bench.evals.detection.roi import Regions
from lewel_bench.evals.detection.rpn import RPN
from lewel_bench.evals.normalisation import STD, mean_of, without_mean
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.backbone import Norm
from lewel_bench.pretrain.recipe import Backbone

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection

BOX_SIDE, MASK_SIDE = 7, 14  # of pooled features; C4 pools 14 and res5 halves it


@dataclass
class Target:
    """The objects of a training image; `polygons` only where masks are trained."""

    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int64
    polygons: Sequence[Polygons | Pixels] = field(default_factory=list)


@dataclass
class Detections:
    """What was found in an image, best first, in the pixels of the original image."""

    boxes: Tensor  # (N, 4)
    scores: Tensor  # (N,)
    labels: Tensor  # (N,)
    masks: Tensor | None = None  # (N, H, W) bool
    mask_probs: Tensor | None = None  # (N, M, M), over the box


class Detector(nn.Module):
    """The detector of a protocol on the backbone of `spec`; `norm` makes each normalisation."""

    def __init__(
        self,
        protocol: "Detection",
        spec: Backbone,
        classes: int,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.protocol, self.spec, self.classes = protocol, spec, classes
        self.backbone = backbone.build(without_mean(spec), norm)
        stem, top, width = spec.stem_stride, self.backbone.channels, protocol.head_width
        self.c4 = protocol.model == "c4"
        if self.c4:
            strides, inputs = (stem * 4,), top // 2
            anchors: list[tuple[float, ...]] = [protocol.anchors]
            self.res5_norm = norm(top)
            self.box = BoxPredictor(Mean(), top, classes)
        else:
            strides, inputs = tuple(stem * 2**i for i in range(5)), width
            anchors = [(size,) for size in protocol.anchors]
            self.fpn = FPN([top // 8, top // 4, top // 2, top], width, norm)
            head = conv_box_head(width, BOX_SIDE, protocol.fc_width, norm)
            self.box = BoxPredictor(head, protocol.fc_width, classes)
        self.rpn = RPN(
            inputs, anchors, strides, protocol.rpn_samples, protocol.pre_nms, protocol.post_nms
        )
        if protocol.masks:
            channels, convs = (top, 0) if self.c4 else (width, 4)
            self.mask = mask_head(channels, width, classes, convs, norm)
        self.strides = strides[:4]  # P6 only proposes
        for name, values in (("mean", mean_of(spec)), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def load_backbone(self, path: Path) -> None:
        """Take the backbone's weights from a file. Raises ValueError when it holds another one."""
        state, spec = checkpoint.read_network(path)
        try:
            if spec != self.spec:
                raise ValueError(f"it is {spec!r}, not {self.spec!r}")
            self.backbone.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold the detector's backbone: {error}") from None

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses, by detectron2's names, of images (3, h, w) with their objects."""
        pixels, sizes = self._batch(images)
        device = pixels.device
        truth = [t.boxes.to(device, torch.float32) for t in targets]
        labels = [t.labels.to(device) for t in targets]
        levels = self._levels(pixels)
        proposals: list[Tensor]
        losses: dict[str, Tensor]
        proposals, losses = self.rpn(levels, sizes, truth)
        regions = roi.sample(proposals, truth, labels, self.protocol.rois, self.classes)
        features = self._features(levels, regions.boxes, BOX_SIDE)
        logits, deltas = self.box(features)
        losses |= roi.box_losses(logits, deltas, regions)
        if self.protocol.masks:
            losses["loss_mask"] = self._mask_loss(levels, features, regions, targets)
        return losses

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """What is in images (3, h, w) whose originals are of `sizes` (height, width)."""
        pixels, resized = self._batch(images)
        levels = self._levels(pixels)
        proposals, _ = self.rpn(levels, resized, None)
        logits, deltas = self.box(self._features(levels, proposals, BOX_SIDE))
        detected = roi.detections(logits, deltas, proposals, resized)
        probs = self._mask_probs(levels, detected) if self.protocol.masks else None
        return [
            _on_original(*of_image, probs[i] if probs else None, resized[i], sizes[i])
            for i, of_image in enumerate(detected)
        ]

    def _batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """Normalised images in the corner of a common size, zero around: (B, 3, H, W).

        FPN needs a multiple of its coarsest stride, C4 nothing.
        """
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        sizes = [(x.shape[-2], x.shape[-1]) for x in images]
        unit = 1 if self.c4 else self.strides[-1]
        height, width = (-(-max(side) // unit) * unit for side in zip(*sizes, strict=True))
        batch = mean.new_zeros(len(images), 3, height, width)
        for canvas, x, (h, w) in zip(batch, images, sizes, strict=True):
            canvas[:, :h, :w] = (x.to(mean.device, non_blocking=True) - mean) / std
        return batch, sizes

    def _levels(self, pixels: Tensor) -> list[Tensor]:
        net = self.backbone
        c2 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(pixels)))))
        c3 = net.layer2(c2)
        c4 = net.layer3(c3)
        levels: list[Tensor] = [c4] if self.c4 else self.fpn([c2, c3, c4, net.layer4(c4)])
        return levels

    def _features(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        """(R, C, side, side) of the boxes; with C4 res5 makes 7 x 7 whatever is asked."""
        if self.c4:
            pooled = pool(levels, self.strides, boxes, MASK_SIDE)
            features: Tensor = self.res5_norm(self.backbone.layer4(pooled))
            return features
        return pool(levels[:4], self.strides, boxes, side)

    def _mask_loss(
        self,
        levels: Sequence[Tensor],
        features: Tensor,
        regions: Regions,
        targets: Sequence[Target],
    ) -> Tensor:
        """With C4 from the box head's own features, with FPN from larger ones."""
        objects = [label < self.classes for label in regions.labels]
        boxes = [b[o] for b, o in zip(regions.boxes, objects, strict=True)]
        labels = torch.cat([n[o] for n, o in zip(regions.labels, objects, strict=True)])
        if not len(labels):  # a norm has nothing to measure; the parameters still get a gradient
            return torch.stack([p.sum() for p in self.mask.parameters()]).sum() * 0.0
        if self.c4:
            features = features[torch.cat(objects)]
        else:
            features = self._features(levels, boxes, MASK_SIDE)
        logits: Tensor = self.mask(features)
        owners = [w[o].tolist() for w, o in zip(regions.owners, objects, strict=True)]
        shapes = [t.polygons[i] for t, of in zip(targets, owners, strict=True) for i in of]
        drawn = mask_ops.rasterise(shapes, torch.cat(boxes).cpu().numpy(), logits.shape[-1])
        return mask_ops.mask_loss(logits, labels, drawn.to(logits.device))

    def _mask_probs(
        self, levels: Sequence[Tensor], detected: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Sequence[Tensor]:
        boxes, labels = [f[0] for f in detected], torch.cat([f[2] for f in detected])
        logits = self.mask(self._features(levels, boxes, MASK_SIDE))
        return torch.split(mask_ops.probabilities(logits, labels), [len(b) for b in boxes])


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """An optimizer's groups: parameters of norms are not decayed, all others are, biases too."""
    norms = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    spared = {p for m in model.modules() if isinstance(m, norms) for p in m.parameters(False)}
    rest = (p for p in model.parameters() if p not in spared)
    return [_group(rest, lr, weight_decay), _group(_ordered(model, spared), lr, 0.0)]


def _group(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": lr, "weight_decay": weight_decay}


def _ordered(model: nn.Module, chosen: set[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p in chosen]


def _on_original(
    boxes: Tensor, scores: Tensor, labels: Tensor, probs: Tensor | None, seen: Size, size: Size
) -> Detections:
    """Detections in an image of size `seen` as those in its original of `size`."""
    scale = boxes.new_tensor([size[1] / seen[1], size[0] / seen[0]] * 2)
    boxes = box_ops.clip(boxes * scale, size)
    kept = box_ops.filled(boxes)
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    if probs is None:
        return Detections(boxes, scores, labels)
    probs = probs[kept]
    return Detections(boxes, scores, labels, mask_ops.paste(probs, boxes, size), probs)
