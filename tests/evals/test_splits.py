"""Which images of a data set train, choose and are reported, by protocol."""

import numpy as np
import pytest

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.evals.splits import of_dense
from lewel_bench.pretrain.recipe import change

SEGMENTATION = change(PROTOCOLS["voc12_seg_fcn_d8"], {"held_out": 4})


class Numbers(list):
    """Scenes that are numbers."""

    def take(self, indices):
        return Numbers(self[i] for i in indices)


@pytest.fixture
def data(splits) -> Dataset:
    """6 classes with 18 images each to train, and 6 each to report."""
    return Dataset(name="images", id="images", root=str(splits.train.root.parent))


def test_a_linear_probe_holds_out_some_images_of_each_class(data):
    protocol = change(PROTOCOLS["linear_lars"], {"held_out": 36})
    splits = protocol.splits(data, final=True)
    assert set(splits.train.files).isdisjoint(splits.select.files)
    assert len(splits.train) == 72 == protocol.training_count(108, 6, final=True)
    assert np.bincount(splits.select.labels).tolist() == [6] * 6
    assert (len(splits.report), splits.report.root.name) == (36, "val")


def test_knn_takes_all_training_images_as_its_bank(data):
    splits = PROTOCOLS["knn"].splits(data, final=True)
    assert len(splits.train) == 108 == PROTOCOLS["knn"].training_count(108, 6, final=True)
    assert splits.select is splits.report and len(splits.report) == 36


def test_a_labelled_subset_and_held_out_images_outside_it(data):
    protocol = change(PROTOCOLS["semi_10pct"], {"held_out": 36, "fraction": 0.5})
    splits = protocol.splits(data, final=False)
    assert np.bincount(splits.train.labels).tolist() == [9] * 6
    assert len(splits.train) == protocol.training_count(108, 6, final=False)
    assert 0 < len(splits.select) < 36 and set(splits.train.files).isdisjoint(splits.select.files)


def test_a_published_list_belongs_to_its_fraction(data, tmp_path):
    listed = tmp_path / "10percent.txt"
    listed.write_text("class0/000.png\nclass5/003.png\n")
    data = change(data, {"lists": {"semi_10pct": str(listed)}})
    protocol = change(PROTOCOLS["semi_10pct"], {"held_out": 36})
    splits = protocol.splits(data, final=False)
    assert splits.train.files == ("class0/000.png", "class5/003.png")
    with pytest.raises(ValueError, match=r"semi_10pct\.fraction 0\.2: .* list for 0\.1 only"):
        change(protocol, {"fraction": 0.2}).splits(data, final=False)


def test_a_final_of_a_dense_task_trains_on_all_scenes():
    train, report = Numbers(range(20)), Numbers(range(100, 110))
    search = of_dense(SEGMENTATION, train, report, final=False)
    assert sorted(search.train + search.select) == train
    assert (len(search.select), search.report) == (4, report)
    assert len(search.train) == SEGMENTATION.training_count(20, 3, final=False)
    final = of_dense(SEGMENTATION, train, report, final=True)
    assert (final.train, final.select, final.report) == (train, None, report)
    assert SEGMENTATION.training_count(20, 3, final=True) == 20


@pytest.mark.parametrize("name", ["linear_lars", "semi_10pct"])
def test_more_than_can_be_held_out(data, name):
    protocol = change(PROTOCOLS[name], {"held_out": 103})
    expected = rf"{name}\.held_out 103: at most 102 of the 108 training images can be held out"
    with pytest.raises(ValueError, match=expected):
        protocol.splits(data, final=True)
    with pytest.raises(ValueError, match=expected):
        protocol.training_count(108, 6, final=True)


def test_more_scenes_than_can_be_held_out():
    with pytest.raises(ValueError, match="at most 3 of the 4 training images can be held out"):
        of_dense(SEGMENTATION, Numbers(range(4)), Numbers(), final=False)
