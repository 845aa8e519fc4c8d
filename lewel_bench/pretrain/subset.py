"""Parts of a training set: held-out images, fractions by class, published lists of files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lewel_bench.pretrain.folder import Images, Indices

_HOLDOUT, _SUBSET = 1, 2  # purposes, so that the same seed draws both independently


def holdout(
    images: Images, count: int, seed: int, exclude: Iterable[int] = ()
) -> tuple[Indices, Indices]:
    """Indices (training, held-out), both sorted: `count` images held out, each class in proportion
    to its size, none of `exclude` and never a class's last image. Raises ValueError if too few
    remain.
    """
    barred = np.zeros(len(images), dtype=bool)
    barred[np.fromiter(exclude, dtype=np.int64)] = True
    sizes = np.bincount(images.labels, minlength=len(images.classes))
    free = np.bincount(images.labels[~barred], minlength=len(images.classes))
    free = np.minimum(free, np.maximum(sizes - 1, 0))
    if not 0 < count <= free.sum():
        raise ValueError(
            f"cannot hold out {count} of {len(images)} images: choose between 1 and {free.sum()} "
            f"(one image per class and {barred.sum()} excluded images are never held out)"
        )
    quota = _proportional(free, count)
    held_out = [
        members[~barred[members]][:n]
        for members, n in zip(_shuffled(images, seed, _HOLDOUT), quota, strict=True)
    ]
    mask = np.zeros(len(images), dtype=bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def subset(images: Images, fraction: float, seed: int) -> Indices:
    """Sorted indices of `fraction` of each class, at least one image. For one seed, a smaller
    fraction is part of a larger one."""
    if not 0 < fraction <= 1:
        raise ValueError(f"training fraction {fraction:g}: must be above 0 and at most 1")
    chosen = [
        members[: max(1, round(fraction * len(members)))]
        for members in _shuffled(images, seed, _SUBSET)
    ]
    return np.sort(np.concatenate(chosen))


def subset_from_list(images: Images, list_file: Path) -> Indices:
    """Sorted indices of the files that `list_file` names, one per line (`n01440764_10026.JPEG`)
    (google-research/simclr, imagenet_subsets). Raises ValueError if a file is missing."""
    try:
        text = Path(list_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{list_file}: list of files cannot be read: {error}") from None
    names = text.split()  # carriage returns are blanks too
    if not names:
        raise ValueError(f"{list_file}: empty list: expected one file name per line")
    places: dict[str, int] = {}
    for index, file in enumerate(images.files):
        name = file.rsplit("/", 1)[-1]
        places[name] = -1 if name in places else index
        places[file] = index
    missing = [name for name in names if name not in places]
    if missing:
        raise ValueError(
            f"{list_file}: {len(missing)} of {len(names)} files are not in {images.root}, first "
            f"{missing[0]!r}: use the list that belongs to this data set"
        )
    double = [name for name in names if places[name] < 0]
    if double:
        raise ValueError(
            f"{list_file}: {double[0]!r} exists in several class folders of {images.root}: "
            f"list it as CLASS/NAME"
        )
    return np.array(sorted({places[name] for name in names}), dtype=np.int64)


def _shuffled(images: Images, seed: int, purpose: int) -> list[Indices]:
    """The indices of each class in an order that depends on the seed alone."""
    key = np.array([seed, purpose], dtype=np.uint64)
    draws = np.random.Philox(key=key).random_raw(len(images))
    order = np.lexsort((draws, images.labels))
    ends = np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))
    return np.split(order, ends[:-1])


def _proportional(sizes: Indices, count: int) -> Indices:
    """`count` shared in proportion to `sizes`, by largest remainder."""
    share = sizes * count / sizes.sum()
    quota: Indices = np.floor(share).astype(np.int64)
    left = count - int(quota.sum())
    quota[np.argsort(quota - share, kind="stable")[:left]] += 1
    return quota
