import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lewel_bench.evals import export
from lewel_bench.evals.checkpoints import formats, importer, limited, match, pixels
from lewel_bench.evals.checkpoints.formats import FORMATS
from lewel_bench.evals.checkpoints.limited import Content
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.recipe import Backbone
from tests.evals.checkpoints import layouts
from tests.evals.checkpoints.layouts import DEEP, LAYOUTS, SMALL, State


def _file(tmp_path: Path, name: str, a: State, b: State) -> Path:
    layout = LAYOUTS[name]
    return layouts.write(tmp_path / "file.pth", layout.content(a, b), layout.write)


def _counted(state: Any, other: Any) -> None:
    """Equal bit for bit; where a file has no counters they are 0."""
    for key, value in other.items():
        if key.endswith("num_batches_tracked"):
            assert state[key] in (value, 0)
        else:
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", LAYOUTS)
def test_documented_layout(name: str, tmp_path: Path) -> None:
    layout, a, b = LAYOUTS[name], layouts.state(1), layouts.state(2)
    path = _file(tmp_path, name, a, b)
    imported = importer.read(path)
    assert (imported.format, imported.network, imported.spec) == (
        layout.format,
        layout.network,
        SMALL,
    )
    assert imported.same + imported.renamed == sum(
        not k.endswith("num_batches_tracked") or layout.write != "pickle" for k in a
    )
    assert importer.read(path, layout.format).tensors == imported.tensors
    if imported.pixels.order == "RGB":
        scale = torch.tensor([0.229 / imported.pixels.std[0], 1, 1])[:, None, None]
        _counted(imported.state, {**a, "conv1.weight": a["conv1.weight"] * scale})
    if layout.second:
        other = importer.read(path, network=layout.second)
        _counted(other.state, b)
        assert other.network == layout.second and other.tensors != imported.tensors
    else:
        with pytest.raises(ValueError, match=r"does not hold the network|unknown network"):
            importer.read(path, network="target")


def test_every_format_has_a_layout() -> None:
    # one layout each, of which the first is recognised
    alike = {"pcl": "moco", "timm": "torchvision", "detectron2_caffe": "detectron2"}
    assert {layout.format for layout in LAYOUTS.values()} | set(alike) == set(FORMATS)


@pytest.mark.parametrize("name", ["moco v2", "before torch 1.6", "detectron2", "timm", "instdisc"])
def test_checksum_depends_on_the_weights_only(name: str, tmp_path: Path) -> None:
    a, b = layouts.state(1), layouts.state(2)
    mixed = dict(reversed(a.items()))
    assert importer.read(_file(tmp_path, name, mixed, b)).tensors == importer.digest(a)


def test_same_numbers_as_torch_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(6, 8, generator=generator)
    content = {
        "slice": whole[1:, ::2],
        "turned": whole.t(),
        "one": torch.tensor(3.5, dtype=torch.float64),
        "half": whole.half(),
        "brain": whole.bfloat16(),
        "none": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(whole),
        "bool": whole > 0,
        "nested": {"deep": [1, 2], "inner": {"tensor": torch.arange(5)}},
    }
    for new in (True, False):
        path = tmp_path / f"{new}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        loaded = torch.load(path, weights_only=True)
        loaded["nested.inner.tensor"] = loaded.pop("nested")["inner"]["tensor"]
        with limited.opened(path) as reader:
            held_out = reader.content()
            result = held_out.tensors(list(loaded))
        assert set(held_out.shapes) == set(loaded)
        for name, value in loaded.items():
            assert torch.equal(result[name], value) and result[name].dtype == value.dtype, name


@pytest.mark.parametrize(
    "spec",
    [
        Backbone(arch="resnet34", width=8),
        DEEP,
        Backbone(arch="resnet101", width=4),
        Backbone(arch="resnet50", width=8),
        Backbone(arch="resnet18", stem="cifar", width=8),
    ],
)
def test_architecture_is_told_from_the_shapes(spec: Backbone, tmp_path: Path) -> None:
    imported = importer.read(layouts.write(tmp_path / "a.pth", layouts.state(1, spec)))
    assert imported.spec == spec and bool(imported.guessed) == (spec.stem == "cifar")


@pytest.mark.parametrize("to", export.FORMATS)
def test_round_trip_through_every_export(to: str, tmp_path: Path) -> None:
    spec = DEEP if export.FORMATS[to].takes(DEEP) else Backbone(arch="resnet18")
    state = layouts.state(1, spec)
    path = tmp_path / f"out{export.FORMATS[to].suffix}"
    path.write_bytes(export.write(to, state, spec))
    imported = importer.read(path)
    assert imported.spec == spec
    _counted(imported.state, state)
    net, actual = backbone.build(spec).eval(), backbone.build(spec).eval()
    net.load_state_dict(state)
    actual.load_state_dict(dict(imported.state))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(images), actual(images))


def test_stem_of_a_file_of_ours(tmp_path: Path) -> None:
    spec = Backbone(arch="resnet18", stem="small", width=8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(export.write("safetensors", layouts.state(1, spec), spec))
    imported = importer.read(path)
    assert imported.spec == spec and not imported.guessed


@pytest.mark.parametrize(
    "expected",
    [
        pixels.Pixels(std=(0.228, 0.224, 0.225)),
        pixels.Pixels(order="BGR"),
        pixels.Pixels(order="BGR", std=(1 / 255, 1 / 255, 1 / 255)),
    ],
)
def test_preprocessing_is_put_into_the_weights(expected: pixels.Pixels) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator)
    weight = torch.randn(4, 3, 7, 7, generator=generator)

    def normalised(entry: pixels.Pixels) -> torch.Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in (entry.mean, entry.std))
        result = (image - mean) / std
        return result.flip(1) if entry.order == "BGR" else result

    theirs = torch.conv2d(normalised(expected), weight, stride=2, padding=3)
    actual = torch.conv2d(
        normalised(pixels.Pixels()), pixels.adapt(weight, expected), stride=2, padding=3
    )
    assert (theirs - actual).abs().max() < 1e-6 * theirs.abs().max()
    assert pixels.adapt(weight, pixels.Pixels()) is weight


def _mutations(content: State, count: int) -> list[tuple[str, State]]:
    """Copies with one name or shape of a backbone changed, and what was changed."""
    random_ = random.Random(0)
    names = sorted(n for n in content if re.search(r"encoder_[qk]\.(conv1|bn1|layer)", n))
    made = []
    for _ in range(count):
        name, changed = random_.choice(names), dict(content)
        value = changed.pop(name)
        how = random_.choice(["letter", "cut", "doubled", "moved", "gone", "shape", "flat"])
        other = name
        if how == "letter":
            while other == name:
                at = random_.randrange(len(name))
                other = name[:at] + random_.choice("abcxyz0123456789._") + name[at + 1 :]
        elif how == "cut":
            at = random_.randrange(len(name))
            other = name[:at] + name[at + 1 :]
        elif how == "doubled":
            at = random_.randrange(len(name))
            other = name[:at] + name[at] + name[at:]
        elif how == "moved":
            parts = name.split(".")
            random_.shuffle(parts)
            other = ".".join(parts)
        elif how == "shape":
            value = value[None] if value.ndim == 0 else torch.cat([value, value])
        elif how == "flat":
            value = value[None] if value.ndim < 2 else value.flatten()
        if how == "gone":
            made.append((f"{name} gone", changed))
        elif other != name or how in ("shape", "flat"):
            made.append((f"{name} {how} {other}", {**changed, other: value}))
    return made


def test_no_mutation_is_accepted(tmp_path: Path) -> None:
    """200 files whose names or shapes are changed in one place: each is refused with a report."""
    content = LAYOUTS["moco v2"].content(layouts.state(1), layouts.state(2))
    tried = 0
    for what, changed in _mutations(dict(content["state_dict"]), 230):
        held_out = {f"state_dict.{name}": tuple(value.shape) for name, value in changed.items()}
        held_content = Content(held_out, frozenset({"state_dict"}), {}, frozenset(), dict)
        try:
            result = importer._recognised(FORMATS, held_content)
            accepted = result.sound
        except ValueError:
            accepted = False
        if accepted and result.networks.keys() == {"query", "key"}:
            # a part `module` more or less, as wrappers add, is the same name
            plain = {n.replace("module.", "") for n in held_out}
            assert plain == {
                f"state_dict.{n.replace('module.', '')}" for n in content["state_dict"]
            }
            continue
        assert not accepted, what
        tried += 1
    assert tried >= 200


@pytest.mark.parametrize("how", ["name", "shape"])
def test_report(how: str, tmp_path: Path) -> None:
    a = layouts.state(1)
    if how == "name":
        a["layer2.0.convl.weight"] = a.pop("layer2.0.conv1.weight")
    else:
        a["layer2.0.conv1.weight"] = a["layer2.0.conv1.weight"][:3]
    with pytest.raises(ValueError) as caught:
        importer.read(layouts.write(tmp_path / "a.pth", a))
    message = str(caught.value)
    assert "network backbone as a resnet18 of width 8" in message
    if how == "name":
        assert (
            "missing: layer2.0.conv1.weight" in message and "nearest to layer2.0.conv1" in message
        )
        assert "left over: layer2.0.convl.weight" in message
    else:
        assert "wrong shape: layer2.0.conv1.weight (3, 8, 3, 3), not (16, 8, 3, 3)" in message


def _resnet(depths: tuple[int, int, int, int]) -> State:
    from torchvision.models.resnet import Bottleneck, ResNet

    with torch.device("meta"):
        net = ResNet(Bottleneck, list(depths))
    return {k: torch.zeros(1).expand(v.shape) if v.ndim else v for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("vit", "a Vision Transformer. Only ResNets"),
        ("mobilenet", "no backbone is in it"),
        ("projector", "no backbone is in it"),
        ("resnet152", r"\(3, 8, 36, 3\) blocks"),
        ("swapped", "left over"),
        ("prefix", r'names begin with "state_dict\.net\.trunk\."'),
    ],
)
def test_other_networks_are_refused(wrong: str, words: str, tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    if wrong == "vit":
        shapes = {"cls_token": (1, 1, 8), "blocks.0.attn.qkv.weight": (24, 8), "norm.weight": (8,)}
    elif wrong == "mobilenet":
        shapes = {"features.0.0.weight": (32, 3, 3, 3), "features.0.1.running_mean": (32,)}
    elif wrong == "projector":
        shapes = {"state_dict.projector.0.weight": (8, 8), "state_dict.projector.1.bias": (8,)}
    elif wrong == "prefix":
        shapes = {f"state_dict.net.trunk.{k}": tuple(v.shape) for k, v in layouts.state(1).items()}
    elif wrong == "resnet152":
        shapes = {k: tuple(v.shape) for k, v in _resnet((3, 8, 36, 3)).items()}
    else:  # the query's blocks behind the key's prefix and the other way round, for one stage
        whole = LAYOUTS["moco v2"].content(layouts.state(1), layouts.state(2))["state_dict"]
        turned = {n: n.replace("encoder_q.layer3", "encoder_q.layer5") for n in whole}
        shapes = {f"state_dict.{turned[n]}": tuple(v.shape) for n, v in whole.items()}
    content = Content(shapes, frozenset(), {}, frozenset(), dict)
    result = importer._recognised(FORMATS, content)
    assert not result.sound
    message = importer._refusal(Path("a.pth"), result, FORMATS[result.format], content, None)
    assert re.search(words, message), message


def test_a_format_named_as_another_is_refused(tmp_path: Path) -> None:
    """Every documented layout under every format's name."""
    same = ({"moco", "pcl"}, {"torchvision", "timm"}, {"detectron2", "detectron2_caffe"})
    for name, layout in LAYOUTS.items():
        path = _file(tmp_path, name, layouts.state(1), layouts.state(2))
        with limited.opened(path) as reader:
            content = reader.content(formats.ALLOWED)
        for format in FORMATS:
            wanted = format == layout.format or {format, layout.format} in same
            if name == "densecl" and format == "openselfsup":
                wanted = True  # DenseCL is a method of OpenSelfSup
            if name == "lightly" and format == "sequential":
                wanted = True  # the same without Lightning
            if name == "instdisc" and format in ("torchvision", "timm"):
                wanted = True  # but for the object beside: see below
            if name.endswith("training") and format in ("torchvision", "timm"):
                wanted = True  # one of its two networks
            assert match.match_layout(format, FORMATS[format], content).sound == wanted, (
                name,
                format,
            )
    with pytest.raises(ValueError, match=r"lib\.NCEAverage\.NCEAverage, which is no plain data"):
        importer.read(_file(tmp_path, "instdisc", layouts.state(1), {}), "torchvision")
    path = _file(tmp_path, "moco v2", layouts.state(1), layouts.state(2))
    with pytest.raises(ValueError, match=r"does not fit the format dino[^$]*it is a file of the"):
        importer.read(path, "dino")


OWN = """
source = "our own trainer"
roots = ["model."]
networks = { main = "trunk." }
heads = ["head."]
rename = [["^stem\\\\.", ""], ["\\\\.norm", ".bn"]]
pixels = { order = "BGR" }
"""


def test_layout_of_the_users_own(tmp_path: Path) -> None:
    a = layouts.state(1)
    named = {}
    for key, value in a.items():
        inner = re.sub(r"(layer.*)\.bn", r"\1.norm", key)
        named[f"trunk.stem.{key}" if key.startswith(("conv1", "bn1")) else f"trunk.{inner}"] = value
    path = layouts.write(tmp_path / "a.pth", {"model": {**named, "head.weight": torch.ones(2)}})
    (tmp_path / "own.toml").write_text(OWN)
    imported = importer.read(path, str(tmp_path / "own.toml"))
    assert (imported.format, imported.network) == ("own", "main")
    assert torch.equal(imported.state["conv1.weight"], a["conv1.weight"].flip(1))
    (tmp_path / "own.toml").write_text(OWN.replace("roots", "rotos"))
    with pytest.raises(ValueError, match="Did you mean 'roots'"):
        importer.read(path, str(tmp_path / "own.toml"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    a = layouts.state(1)
    a["layer3.0.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"layer3\.0\.conv1\.weight: 1 of its 4608 numbers"):
        importer.read(layouts.write(tmp_path / "a.pth", a))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    a = layouts.state(1)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in a.items()}
    imported = importer.read(layouts.write(tmp_path / "a.pth", halves))
    assert torch.equal(imported.state["bn1.weight"], a["bn1.weight"].half().float())


def _refused(path: Path, content: Any, message: str, **asked: str) -> None:
    with pytest.raises(ValueError, match=message):
        importer.read(layouts.write(path, content), **asked)


def test_two_names_for_one_tensor(tmp_path: Path) -> None:
    a, b = layouts.state(1), layouts.state(2)
    named = {f"backbone.bottom_up.{k}": v for k, v in layouts.staged(a).items()}
    res5 = {k: v for k, v in layouts.staged(b).items() if k.startswith("res5")}
    twice = named | {f"roi_heads.{k}": v for k, v in res5.items()}
    _refused(tmp_path / "a.pth", {"model": twice}, r"left over: model\.roi_heads\.res5")
    (tmp_path / "own.toml").write_text(
        'source = "us"\nroots = [""]\nnetworks = { one = "" }\nrename = [["^ema_", ""]]\n'
    )
    both = a | {f"ema_{key}": value for key, value in b.items()}
    _refused(tmp_path / "b.pth", both, "left over: ema_", format=str(tmp_path / "own.toml"))


def test_two_places_of_a_backbone(tmp_path: Path) -> None:
    content = {"state_dict": layouts.state(1), "model": layouts.state(2)}
    _refused(tmp_path / "a.pth", content, "has a backbone at 'state_dict' and at 'model'")


def test_networks_that_only_look_like_ours(tmp_path: Path) -> None:
    content = {"state_dict": layouts.state(1), "arch": "resnetblur18"}
    _refused(tmp_path / "a.pth", content, "timm's resnetblur18, which smooths")
    cifar = layouts.state(1, Backbone(arch="resnet18", stem="cifar", width=8))
    heads = layouts.within("backbone.", cifar) | layouts.plain(classifier__weight=(4, 4))
    _refused(tmp_path / "b.ckpt", {"state_dict": heads}, "pads its 3x3 convolution by 2")
    pixels = {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.ones(3)}
    model = {f"backbone.{k}": v for k, v in layouts.staged(layouts.state(1)).items()}
    _refused(tmp_path / "c.pth", {"model": model | pixels}, "for pixels of 0 to 255 does not say")


def test_no_network_is_taken_for_a_head() -> None:
    for name, layout in FORMATS.items():
        for prefix in filter(None, layout.networks.values()):
            assert not prefix.startswith(layout.heads), name


def test_the_networks_of_lightly_s_moco(tmp_path: Path) -> None:
    a, b = layouts.state(1), layouts.state(2)
    content = layouts.within("backbone.", a) | layouts.within("query_backbone.", b)
    whole = {"state_dict": content, "pytorch-lightning_version": "2"}
    path = layouts.write(tmp_path / "a.ckpt", whole)
    assert importer.read(path).network == "backbone"  # what lightly's benchmark evaluates
    _counted(importer.read(path, network="query").state, b)
    content["query_backbone.layer1.0.se.conv.weight"] = torch.ones(2)
    _refused(tmp_path / "b.ckpt", whole, "left over: state_dict.query_backbone.layer1.0.se")


def test_a_header_of_another_network_is_not_believed(tmp_path: Path) -> None:
    spec = Backbone(arch="resnet18", stem="cifar", width=8)
    other = json.dumps(Backbone(arch="resnet50").model_dump(mode="json"))
    path = layouts.write(
        tmp_path / "a.pth", {"state_dict": layouts.state(1, spec), "backbone": other}
    )
    assert importer.read(path).spec == spec


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('rename = [["^conv1", "\\\\2x"]]', "is no regular expression"),
        ("roots = []", "roots"),
    ],
)
def test_mistakes_in_a_layout(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'source = "us"\nnetworks = {{ one = "" }}\n{line}\n')
    _refused(tmp_path / "a.pth", layouts.state(1), message, format=str(tmp_path / "own.toml"))


def test_misspelt_names(tmp_path: Path) -> None:
    path = _file(tmp_path, "moco v2", layouts.state(1), layouts.state(2))
    with pytest.raises(ValueError, match="Did you mean 'moco'"):
        importer.read(path, "moko")
    with pytest.raises(ValueError, match="Did you mean 'query'"):
        importer.read(path, network="qery")
