"""Where two views of an image meet, against images of coordinates, sampling and torchvision."""

import pytest
import torch
from torchvision.ops import roi_align

from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.parts.regions import centres, contained, corners, moved, pool, windows


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    size = 0.3 + 0.5 * torch.rand(count, 2, generator=generator, dtype=torch.double)
    low = torch.rand(count, 2, generator=generator, dtype=torch.double) * (1 - size)
    box = torch.cat([low, low + size], 1)
    flipped = torch.rand(count, generator=generator) < 0.5
    return torch.where(flipped[:, None], box[:, [2, 1, 0, 3]], box)


def test_corners_of_a_crop_and_of_its_flip():
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.6]]] * 2)  # top, left, height, width
    flips = torch.tensor([[False], [True]])
    nothing = torch.zeros(1, dtype=torch.long)
    entry, two = corners(Views((), nothing, nothing, boxes, flips))
    close(entry, torch.tensor([[0.2, 0.1, 0.8, 0.6]]))  # left, top, right, bottom
    close(two, torch.tensor([[0.8, 0.1, 0.2, 0.6]]))


def test_centres_of_cells_are_where_an_image_of_coordinates_says():
    side, cells = 12, 3
    shares = (torch.arange(side, dtype=torch.double) + 0.5) / side
    picture = torch.stack([shares.expand(side, side), shares[:, None].expand(side, side)])
    # the view is the image's columns 3 to 11 and rows 0 to 5, mirrored, in 3 x 3 cells
    view = picture[:, :6, 3:12].flip(2)
    means = view.unflatten(2, (cells, 3)).unflatten(1, (cells, 2)).mean((2, 4))  # (2, 3, 3)
    box = torch.tensor([[12 / 12, 0.0, 3 / 12, 6 / 12]], dtype=torch.double)
    close(centres(box, (cells, cells))[0], means.flatten(1).T)


def test_windows_are_those_of_resims_code():
    c4, c3 = 224 * windows(3, 2, 14), 224 * windows(4, 3, 28)
    assert len(c4) == 36 and len(c3) == 64
    close(c4[7], torch.tensor([32.0, 32, 80, 80]))  # 48 px, every 32, row by row
    close(c3[-1], torch.tensor([168.0, 168, 200, 200]))  # 32 px, every 24


def test_a_map_that_is_too_small_is_said():
    with pytest.raises(ValueError, match=r"a feature map of 2x2 cells .* larger image_size"):
        windows(3, 1, 2)


def test_a_window_moved_there_and_back_is_itself():
    inside = windows(3, 2, 8).double()
    entry, two = random_boxes(20, 0), random_boxes(20, 1)
    close(moved(inside, entry, entry), inside.expand(20, -1, -1))
    expected = moved(inside, entry, two)
    back = torch.cat(
        [moved(w, b[None], a[None]) for w, a, b in zip(expected, entry, two, strict=True)]
    )
    close(back, inside.expand(20, -1, -1))


def test_a_window_is_contained_where_the_other_view_shows_all_of_it():
    inside = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9]])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    half = torch.tensor([[0.4, 0.4, 1.0, 1.0]])
    assert contained(moved(inside, whole, half)).tolist() == [[False, True]]
    assert contained(moved(inside, half, whole)).tolist() == [[True, True]]
    mirrored = half[:, [2, 1, 0, 3]]
    assert contained(moved(inside, whole, mirrored)).tolist() == [[False, True]]


def test_pooling_is_the_integral_of_the_interpolated_map():
    torch.manual_seed(0)
    F = torch.randn(2, 3, 6, 6, dtype=torch.double)
    window = torch.rand(2, 5, 4, dtype=torch.double) * 0.4
    window[..., 2:] += 0.43  # up to the map's last cell, at 5/6
    actual = pool(F, window)
    shifted = list(6 * window + 0.5)  # its cell i lies at i + 1/2
    samples = roi_align(F, shifted, 1, sampling_ratio=200, aligned=True)
    close(actual.flatten(0, 1), samples.flatten(1), 1e-4)


def test_pooling_of_whole_cells_and_of_one_point():
    F = torch.arange(16.0, dtype=torch.double).view(1, 1, 4, 4)
    # from cell 1 to cell 2 the map is linear: its mean is that of the ends
    close(pool(F, torch.tensor([[[0.25, 0.25, 0.5, 0.5]]], dtype=torch.double)).item(), 7.5)
    tiny = torch.tensor([[[0.25, 0.5, 0.25 + 1e-9, 0.5 + 1e-9]]], dtype=torch.double)
    assert pool(F, tiny).item() == pytest.approx(9, abs=1e-5)  # row 2, column 1
    mirrored = torch.tensor([[[0.5, 0.25, 0.25, 0.5]]], dtype=torch.double)
    close(pool(F, mirrored).item(), 7.5)


def test_the_same_place_is_pooled_from_both_views():
    # a map that is linear in the image looks the same through any crop, up to the half cell
    entry, two = random_boxes(8, 2), random_boxes(8, 3)
    maps = []
    for box in (entry, two):
        at = centres(box, (16, 16)).view(8, 16, 16, 2)
        maps.append(at.permute(0, 3, 1, 2))  # (8, 2, 16, 16)
    inside = windows(4, 3, 16).double()
    expected = moved(inside, entry, two)
    first = pool(maps[0], inside.expand(8, -1, -1))
    second = pool(maps[1], expected)
    shown = contained(expected) & (expected.amax(-1) < 15 / 16) & (expected.amin(-1) > 0)
    assert shown.any()
    half_cells = ((entry - two)[:, 2:] - (entry - two)[:, :2]).abs() / 32
    off = (first - second).abs() - half_cells[:, None]
    assert off[shown].max() < 1e-6
