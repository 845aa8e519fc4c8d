"""Where each name of a file goes by a layout, and what does not fit."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from lewel_bench.evals import weights
from lewel_bench.evals.checkpoints.formats import KEY, Format
from lewel_bench.evals.checkpoints.limited import Content
from lewel_bench.pretrain.backbone import LAYERS
from lewel_bench.pretrain.recipe import WIDEST, Backbone

Shape = tuple[int, ...]
Rename = Callable[[Format, Sequence[str]], Sequence[str]]
COUNTER = ".num_batches_tracked"  # older software does not keep it
STATISTICS = (".running_mean", ".running_var")
STEMS = {7: "imagenet", 3: "cifar"}  # by the side of the first convolution
# what DataParallel, torch.compile, FSDP and activation checkpointing add to the names of weights
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass
class Network:
    """One network of a file: for each key of a backbone its name in the file, and how that fails to
    be a backbone."""

    keys: dict[str, str] = field(default_factory=dict)
    spec: Backbone | None = None
    unlike: str = ""  # why it is none of our architectures
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    def same(self, root: str) -> int:
        """How many names are those of a backbone already, below `root`."""
        return sum(file.removeprefix(root) == key for key, file in self.keys.items())

    @property
    def sound(self) -> bool:
        return not (self.unlike or self.missing or self.wrong or self.over)


@dataclass
class Match:
    """A file as one layout has it: its networks, and names that belong to nothing."""

    format: str
    root: str
    networks: dict[str, Network]
    heads: list[str]
    over: list[str]
    lacks: str = ""  # what tells this layout from others, and is not there

    @property
    def sound(self) -> bool:
        whole = all(network.sound for network in self.networks.values())
        return bool(self.networks) and whole and not (self.over or self.lacks)

    @property
    def faults(self) -> int:
        """How far it is from fitting, for the choice of what to show."""
        networks = self.networks.values()
        wrong = sum(len(o.missing) + len(o.wrong) + len(o.over) + bool(o.unlike) for o in networks)
        placed = sum(len(network.keys) for network in networks)
        return wrong + len(self.over) + bool(self.lacks) - placed


def match_layout(
    name: str, layout: Format, content: Content, rename: Rename = Format.keys
) -> Match:
    """The file by a layout, with the root that fits best; `rename` applies the layout's patterns.
    Raises ValueError where two roots do."""
    plain = unwrapped(content.shapes)
    matches = [
        _at(name, layout, root, plain, content, rename)
        for root in layout.roots
        if any(key.startswith(root) for key in plain)
    ]
    if not matches:
        places = " or ".join(repr(root.rstrip(".")) for root in layout.roots)
        return Match(name, "", {}, [], [], f"it has no weights in {places}")
    whole = [candidate.root.rstrip(".") for candidate in matches if candidate.sound]
    if len(whole) > 1:
        roots = " and at ".join(map(repr, whole))
        raise ValueError(f"has a backbone at {roots}: say which as roots in --format FILE.toml")
    return min(matches, key=lambda candidate: (not candidate.sound, candidate.faults))


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without the parts that wrappers add, and the names in the file. Raises ValueError where
    two become one."""
    wrapped: dict[str, str] = {}
    for name in names:
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in wrapped:
            raise ValueError(f"{name} and {wrapped[short]} are the same but for their wrapper")
        wrapped[short] = name
    return wrapped


def _at(
    name: str,
    layout: Format,
    root: str,
    plain: Mapping[str, str],
    content: Content,
    rename: Rename,
) -> Match:
    networks: dict[str, Network] = {}
    heads: list[str] = []
    over: list[str] = []
    inside = {n.removeprefix(root): file for n, file in plain.items() if n.startswith(root)}
    prefixes = sorted(layout.networks.items(), key=lambda pair: -len(pair[1]))
    within = sorted({s.removeprefix(p) for s in inside for _, p in prefixes if s.startswith(p)})
    keys = dict(zip(within, rename(layout, within), strict=True))
    for short, file in inside.items():
        for network, prefix in prefixes:
            key = keys[short.removeprefix(prefix)] if short.startswith(prefix) else ""
            if KEY.fullmatch(key):
                member = networks.setdefault(network, Network())
                if key in member.keys:
                    member.over.append(file)  # two names for one tensor of the backbone
                else:
                    member.keys[key] = file
                break
        else:
            (heads if short.startswith(layout.heads) else over).append(file)
    for member in networks.values():
        _judge(member, content.shapes, layout)
    tops = {f"/{top}" for top in content.tops}
    needed = [n for n in layout.needs if n in tops or any(s.startswith(n) for s in inside)]
    lacks = "" if needed or not layout.needs else f"it has no {' or '.join(layout.needs)}"
    if not networks:
        lacks = f"no weight of a ResNet begins with {' or '.join(layout.networks.values()) or root}"
    order = [network for network in layout.networks if network in networks]
    return Match(name, root, {n: networks[n] for n in order}, heads, over, lacks)


def _judge(network: Network, shapes: Mapping[str, Shape], layout: Format) -> None:
    """Say what of `one` is no backbone of ours; the architecture is told from names and shapes."""
    sizes = {key: shapes[file] for key, file in network.keys.items()}
    stem = sizes.get("conv1.weight", ())
    if len(stem) != 4:
        network.missing = [] if stem else ["conv1.weight"]
        network.wrong = [f"conv1.weight {stem}"] if stem else []
        return
    if stem[1] != 3 or stem[2] != stem[3] or stem[2] not in STEMS or not 0 < stem[0] <= WIDEST:
        network.unlike = (
            f"its first convolution is {stem}, not (width, 3, 7, 7) or (width, 3, 3, 3)"
        )
        return
    name = STEMS[stem[2]]
    if layout.stem and (layout.stem == "imagenet") != (name == "imagenet"):
        network.unlike = f"its first convolution is {stem}, which no stem {layout.stem} has"
        return
    name = layout.stem or name
    thick = any(".conv3." in key for key in sizes)
    specs = [
        Backbone.model_validate({"arch": arch, "stem": name, "width": stem[0]})
        for arch, (block, _) in LAYERS.items()
        if (block.expansion > 1) == thick
    ]
    wanted = {spec.arch: _shapes(spec) for spec in specs}
    spec = min(specs, key=lambda s: len(wanted[s.arch].keys() ^ sizes.keys()))
    want = wanted[spec.arch]
    counted = any(key.endswith(COUNTER) for key in sizes)
    without: tuple[str, ...] = () if counted else (COUNTER,)
    if layout.absorbed and not any(key.endswith(STATISTICS) for key in sizes):
        without += STATISTICS
    network.spec = spec.model_copy(update={"mean": layout.pixels.other_mean})
    if spec.expansion > 1:
        network.spec = network.spec.model_copy(update={"stride": layout.stride})
    network.missing = [k for k in want if k not in sizes and not k.endswith(without)]
    network.over += [network.keys[key] for key in sizes if key not in want]
    network.wrong = [
        f"{network.keys[key]} {sizes[key]}, not {want[key]}"
        for key in want
        if key in sizes and sizes[key] != want[key]
    ]
    blocks = _blocks(sizes)
    if blocks != LAYERS[spec.arch][1] and len(network.over) + len(network.missing) > 20:
        network.unlike = (
            f"it has {blocks} blocks: ResNets of {', '.join(LAYERS)} are evaluated here"
        )


@cache
def _shapes(spec: Backbone) -> Mapping[str, Shape]:
    return weights.shapes(spec)


def _blocks(sizes: Mapping[str, Shape]) -> tuple[int, ...]:
    return tuple(
        len({key.split(".")[1] for key in sizes if key.startswith(f"layer{n}.")})
        for n in range(1, 5)
    )


def mismatch_report(match: Match) -> str:
    """Why a file does not fit a layout, in lines."""
    lines = [f"  {match.lacks}"] if match.lacks else []
    over = list(match.over)
    for name, network in match.networks.items():
        renamed = len(network.keys) - network.same(match.root)
        what = f" as a {network.spec.arch} of width {network.spec.width}" if network.spec else ""
        lines.append(
            f"  network {name}{what}: {len(network.keys)} names matched, {renamed} of them renamed"
        )
        lines += [f"    {network.unlike}"] if network.unlike else []
        for word, names in (("missing", network.missing), ("wrong shape", network.wrong)):
            lines += [f"    {word}: {weights.listed(names)}"] if names else []
        over += network.over
        lines += [
            f"    nearest to {key}: {near[0]}"
            for key in network.missing[:3]
            if (near := difflib.get_close_matches(key, [*match.over, *network.over], 1, 0.4))
        ]
    lines += [f"  left over: {weights.listed(over)}"] if over else []
    return "\n".join(lines)
