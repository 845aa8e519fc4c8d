"""The revision and the counts of the generated scenes, in a module without NumPy: keys and plans
need them."""

from lewel_bench.pretrain.recipe import Positive
from lewel_bench.value import Value

REVISION = 4  # increase it when any byte of any file changes
KINDS = 12  # classes of the scenes


class Counts(Value):
    """How many images are written: per class for `train` and `val`, else in total."""

    train: Positive = 216
    val: Positive = 60
    voc2007_train: Positive = 50
    voc2007_val: Positive = 50
    voc2007_test: Positive = 100
    voc2012_train: Positive = 100
    voc2012_val: Positive = 100
    coco_train: Positive = 200
    coco_val: Positive = 100

    def total(self) -> int:
        """The number of images of all layouts."""
        counts: dict[str, int] = self.model_dump()
        return sum(counts.values()) + (KINDS - 1) * (self.train + self.val)

    def training(self, layout: str, task: str) -> int:
        """The number of training images that a task reads of a layout."""
        if layout == "folders":
            return KINDS * self.train
        if layout == "coco":
            return self.coco_train
        if task == "segmentation":
            return self.voc2012_train
        return self.voc2007_train + self.voc2007_val + self.voc2012_train + self.voc2012_val
