"""What a pre-training shows of its backbone while it trains."""

from lewel_bench.evals import features, knn
from lewel_bench.evals.splits import SEED
from lewel_bench.pretrain import collapse
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.folder import Images
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.subset import holdout
from lewel_bench.pretrain.train import Monitor

TIMES = 5  # in the course of a pre-training
BANK, QUERIES = 50, 20  # images per class


def monitor(recipe: Recipe, train: Images, val: Images, machine: Machine) -> Monitor:
    """kNN accuracy and effective rank on a few images per class, to watch a training; no table has
    these numbers.

    The untrained network (epoch 0) gets batch-norm statistics of the images, as any trained network
    has: with its initial statistics every layer would add to the mean that all features share.
    """
    size = recipe.image_size
    resize = size * 8 // 7
    classes = len(train.classes)
    bank = _few(train, BANK * classes)
    queries = _few(val, QUERIES * classes)

    def look(net: ResNet, epoch: int) -> dict[str, float]:
        if epoch == 0:
            net = features.calibrated(net, bank, size=size, resize=resize, machine=machine)
        known, queried = (
            features.extract(net, part, size=size, resize=resize, machine=machine)
            for part in (bank, queries)
        )
        return {
            "knn_top1": knn.measure(known, queried, [20], 0.07, classes)[0]["top1"],
            collapse.RANK: features.effective_rank(known[0], queried[0]),
        }

    return look


def _few(images: Images, count: int) -> Images:
    if len(images) <= count:
        return images
    return images.take(holdout(images, count, SEED)[1])
