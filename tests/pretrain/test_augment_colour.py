"""The batched colour operations against Pillow and torchvision, one by one and in whole chains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import drawn, extract
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as V

from lewel_bench.pretrain import blur, colour
from lewel_bench.pretrain.augment import crop, draw, reference
from lewel_bench.pretrain.colour import distort, normalise
from lewel_bench.pretrain.decode import decode
from lewel_bench.pretrain.views import AUGMENTS

CPU = torch.device("cpu")
SIZE = 48
Run = Callable[[Tensor, Tensor, torch.device], Tensor]
PLAIN = (0.0, -1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def row(**changes: float) -> Tensor:
    """Parameters that change nothing but `changes`, by the names of the columns."""
    values = torch.tensor([PLAIN])
    for name, value in changes.items():
        values[0, getattr(colour, name)] = value
    return values


def levels(x: Tensor) -> Tensor:
    """Normalised images as levels 0..255, (B, H, W, 3)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (colour.MEAN, colour.STD))
    return ((x * std + mean) * 255).permute(0, 2, 3, 1)


def views(name: str, view: int, files: list[Path], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Crops, parameters and what the reference makes of them, for each file."""
    spec = AUGMENTS[name][view]
    pixels = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    rows, wanted = [], []
    for i, file in enumerate(files):
        image = decode(file)
        rng = np.random.Generator(np.random.Philox(key=[i, view]))
        box, params = draw(spec, *image.shape[:2], size, rng)
        crop(image, box, size, spec.interpolation, pixels[i])
        rows.append(torch.from_numpy(params))
        wanted.append(reference(Image.fromarray(image), box, rows[-1], spec, size))
    return pixels, torch.stack(rows), torch.stack(wanted)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(64):
        Image.fromarray(drawn(90 + i, 120, i)).save(folder / f"{i}.jpg", quality=92)
    return sorted(folder.iterdir())


def pil(op: str, image: Image.Image, value: float) -> Image.Image:
    return {
        "BRIGHTNESS": lambda: V.adjust_brightness(image, value),
        "CONTRAST": lambda: V.adjust_contrast(image, value),
        "SATURATION": lambda: V.adjust_saturation(image, value),
        "HUE": lambda: V.adjust_hue(image, value),
        "GREY": lambda: V.to_grayscale(image, 3),
        "SOLARIZE": lambda: ImageOps.solarize(image, 128),
        "FLIP": lambda: ImageOps.mirror(image),
    }[op]()


@pytest.mark.parametrize("run", [colour.distort, colour.masked])
@pytest.mark.parametrize(
    ("op", "value"),
    [
        *[(op, f) for op in ("BRIGHTNESS", "CONTRAST", "SATURATION") for f in (0.6, 0.93, 1.37)],
        ("GREY", 1.0),
        ("SOLARIZE", 1.0),
        ("FLIP", 1.0),
    ],
)
def test_an_operation_equals_pillows(run: Run, op: str, value: float) -> None:
    image = drawn(SIZE, SIZE, 3)
    jitter = {"ORDER": 5} if op in ("BRIGHTNESS", "CONTRAST", "SATURATION") else {}
    params = row(**jitter, **{op: value})
    got = levels(run(torch.from_numpy(image)[None], params, CPU))[0]
    want = np.array(pil(op, Image.fromarray(image), float(params[0, getattr(colour, op)])))
    assert np.abs(got.numpy() - want).max() < 1e-3


@pytest.mark.parametrize("size", [33, 64, 300])
def test_the_mean_of_the_contrast_is_pillows_at_every_size(size: int) -> None:
    # 300² levels sum to more than float32 holds exactly
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    image[0, : size // 2] = 0
    image[1:, 1, 1] = 7
    got = levels(distort(torch.from_numpy(image)[None], row(ORDER=0, CONTRAST=0.7), CPU))[0]
    want = np.array(V.adjust_contrast(Image.fromarray(image), float(np.float32(0.7))))
    assert np.abs(got.numpy() - want).max() < 1e-3


@pytest.mark.parametrize("hue", [-0.1, 0.03, 0.1, 0.4])
def test_hue_differs_from_pillow_by_a_rounding_of_few_colours(hue: float) -> None:
    # every second level of red, green and blue: 2^21 colours
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 2, dtype=np.uint8)] * 3), -1)
    image = grid.reshape(1024, 2048, 3)
    params = row(ORDER=0, HUE=hue)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    got = colour._turn(x, colour._shift(params[:, colour.HUE])[:, None, None])[0].permute(1, 2, 0)
    want = np.array(V.adjust_hue(Image.fromarray(image), float(params[0, colour.HUE])))
    difference = np.abs(got.numpy() - want)
    assert difference.max() <= 6
    assert difference.mean() <= 0.01
    assert (difference.max(-1) > 0).mean() <= 0.01


@pytest.mark.parametrize("order", [0, 7, 13, 23])
def test_the_order_of_the_jitter_is_that_of_the_parameters(order: int) -> None:
    image = drawn(SIZE, SIZE, 4)
    values = {"BRIGHTNESS": 1.4, "CONTRAST": 0.6, "SATURATION": 1.3, "HUE": 0.08}
    params = row(ORDER=order, **values)
    want = Image.fromarray(image)
    names = {getattr(colour, name): name for name in values}
    for op in colour.ORDERS[order]:
        want = pil(names[op], want, float(params[0, op]))
    got = levels(distort(torch.from_numpy(image)[None], params, CPU))[0]
    difference = np.abs(got.numpy() - np.array(want))
    assert difference.max() <= 9.01
    assert difference.mean() <= 0.05


@pytest.mark.parametrize("sigma", [0.1, 0.47, 1.03, 1.41, 1.42, 1.99, 3.7])
def test_blur_is_pillows(sigma: float) -> None:
    image = drawn(SIZE, SIZE, 5)
    sigma = float(np.float32(sigma))
    got = levels(distort(torch.from_numpy(image)[None], row(SIGMA=sigma), CPU))[0]
    want = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
    difference = np.abs(got.numpy() - want)
    assert difference.max() < 1.01
    assert difference.mean() < 0.002


def test_blur_at_a_sigma_of_exact_halves_rounds_within_pillows_bound() -> None:
    # at sigma 1 the weights are sixths, and Pillow's integers break ties either way
    image = drawn(SIZE, SIZE, 5)
    got = levels(distort(torch.from_numpy(image)[None], row(SIGMA=1.0), CPU))[0]
    want = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)))
    assert np.abs(got.numpy() - want).max() < 3.01


@pytest.mark.parametrize(("taps", "sigma"), [(3, 0.1), (7, 1.3), (23, 2.0)])
def test_the_true_gaussian_is_torchvisions(taps: int, sigma: float) -> None:
    image = drawn(SIZE, SIZE, 6)
    got = levels(distort(torch.from_numpy(image)[None], row(SIGMA=sigma, TAPS=taps), CPU))[0]
    want = np.array(V.gaussian_blur(Image.fromarray(image), [taps, taps], [sigma, sigma]))
    difference = np.abs(got.numpy() - want)
    assert difference.max() < 1.01
    assert difference.mean() < 0.002


def test_the_three_boxes_have_the_variance_of_the_gaussian() -> None:
    # of a box of radius r with its fractional ends, against eq. 7 of Gwosdek et al.
    for sigma in np.linspace(0.1, 4, 40):
        radius = float(blur.box_radius(torch.tensor(sigma, dtype=torch.float64)))
        whole = int(radius)
        inner = 1 / (2 * radius + 1)
        outer = (1 - (2 * whole + 1) * inner) / 2
        box = 2 * inner * sum(k * k for k in range(whole + 1)) + 2 * outer * (whole + 1) ** 2
        assert 3 * box == pytest.approx(sigma**2, rel=1e-9)
        assert blur.box_reach(sigma) == whole + 1


def test_a_kernel_wider_than_the_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="23 taps needs images above 11 px"):
        blur.gaussian(torch.zeros(1, 3, 8, 8), torch.ones(1), 23)


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("name", ["moco_v2", "byol_eman", "byol_paper", "moco_v2_no_blur"])
def test_a_batch_is_the_reference_image_by_image(
    name: str, view: int, pictures: list[Path]
) -> None:
    pixels, params, wanted = views(name, view, pictures, SIZE)
    difference = (levels(distort(pixels, params, CPU)) - levels(wanted)).abs()
    assert difference.max() <= 12.01
    assert difference.mean() <= 0.25


@pytest.mark.parametrize("name", ["moco_v2", "byol_eman"])
def test_real_photographs_are_the_reference_at_the_papers_size(name: str, tmp_path: Path) -> None:
    files = extract("coco-mini.tar.gz", tmp_path, 24)
    pixels, params, wanted = views(name, 0, files, 224)
    difference = (levels(distort(pixels, params, CPU)) - levels(wanted)).abs()
    assert difference.max() <= 12.01
    assert difference.mean() <= 0.25


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("name", ["moco_v2", "byol_eman", "byol_paper"])
def test_masks_and_indices_give_the_same_batch(name: str, view: int, pictures: list[Path]) -> None:
    pixels, params, _ = views(name, view, pictures, SIZE)
    indexed, masked = distort(pixels, params, CPU), colour.masked(pixels, params, CPU)
    assert (levels(indexed) - levels(masked)).abs().max() < 1e-3
    assert indexed.stride() == masked.stride()
    assert masked.is_contiguous(memory_format=torch.channels_last)


def test_the_masked_chain_is_one_graph(
    monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    # traced whole, without waiting for a code generator
    program = torch.compile(colour._program, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(colour, "_compiled_program", lambda: program)
    for name in ("byol_eman", "byol_paper"):
        pixels, params, _ = views(name, 1, pictures[:20], SIZE)
        got = colour.masked(pixels, params, CPU, compile=True)
        assert (levels(got) - levels(distort(pixels, params, CPU))).abs().max() < 1e-3


def test_a_view_does_not_depend_on_its_batch(pictures: list[Path]) -> None:
    pixels, params, _ = views("byol_eman", 1, pictures, SIZE)
    together = distort(pixels, params, CPU)
    for i in range(0, len(pixels), 7):
        alone = distort(pixels[i : i + 1], params[i : i + 1], CPU)
        assert torch.equal(alone[0], together[i])


def test_views_without_any_operation_are_only_normalised() -> None:
    pixels = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8)
    want = torch.stack(
        [V.normalize(V.to_tensor(p.numpy()), list(colour.MEAN), list(colour.STD)) for p in pixels]
    )
    for got in (distort(pixels, row().repeat(5, 1), CPU), normalise(pixels, CPU)):
        assert torch.allclose(got, want, atol=1e-6)
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_the_batch_of_the_cpu(compiled: bool, pictures: list[Path]) -> None:
    for name in ("moco_v2", "byol_eman", "byol_paper"):
        pixels, params, _ = views(name, 1, pictures, SIZE)
        # the first call sends constants and compiles
        distort(pixels, params, torch.device("cuda"), compile=compiled)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = distort(pixels.pin_memory(), params, torch.device("cuda"), compile=compiled)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        difference = (levels(got.cpu()) - levels(distort(pixels, params, CPU))).abs()
        assert difference.mean() <= 0.01
