"""The training set as methods see it between epochs: the centre crop of every image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.augment import normalise
from lewel_bench.pretrain.data import Images, image_batches
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.recipe import Recipe


@dataclass(frozen=True)
class CentreCrops:
    """A `method.TrainingSet` of the images of a pre-training."""

    images: Images
    recipe: Recipe
    machine: Machine

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def features(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` of the centre crop of every image, (N, d), on every rank."""
        outputs: Tensor | None = None
        for batch in image_batches(
            self.images,
            self.recipe.image_size,
            crop="center",
            batch=self.recipe.batch,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=self.machine.workers,
        ):
            if not len(batch.index):
                continue
            z = encode(normalise(batch.pixels, self.machine.device))
            if outputs is None:
                outputs = z.new_zeros(len(self), z.shape[1])
            outputs[batch.index.to(z.device)] = z
        assert outputs is not None, "a batch has an image for every rank"
        return distributed.total(outputs)
