"""Damaged inputs of every kind: refused or read, never executed, in bounded time and memory.

Each seed damages one small valid input and runs the command that reads it, in a process of its own
forked from this one, which has the imports already. 20 seeds run by default, 200 with
$LEWEL_BENCH_SLOW.
"""

import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from annotated import make_coco, make_voc
from command_line import environment, write_images
from finished import finish
from safetensors.torch import save

from lewel_bench.harness.bundles import bundle
from lewel_bench.harness.cli import main
from lewel_bench.pretrain.backbone import build
from lewel_bench.pretrain.recipe import Backbone

SEEDS = range(200 if os.environ.get("LEWEL_BENCH_SLOW") else 20)
CPU_S, MEMORY_MB, WALL_S = 2.0, 300.0, 60.0
MARKER = "executed"  # a file that hostile input tries to make in the working directory

SITE = '[data]\nimagenet = "/data/imagenet"\n\n[suites.mine]\nlike = "shapes"\ndata = "images"\n'
LAYOUT = 'source = "ours"\nroots = ["model."]\nnetworks = { main = "trunk." }\nheads = ["head."]\n'


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind: the file that is damaged, below the folder of all inputs, and the command
    that reads it there."""

    file: str
    command: tuple[str, ...]


EVAL = ("eval", "--name", "theirs", "--as", "moco_v2_200ep", "--suite", "shapes", "--dry-run")
KINDS = [
    Kind("zipped.pth", (*EVAL, "--checkpoint", "zipped.pth")),
    Kind("legacy.pth", (*EVAL, "--checkpoint", "legacy.pth")),
    Kind("plain.safetensors", (*EVAL, "--checkpoint", "plain.safetensors")),
    Kind("layout.toml", (*EVAL, "--checkpoint", "own.pth", "--format", "layout.toml")),
    Kind("bundle.zip", ("bundle", "--verify", "bundle.zip")),
    Kind("bundle.zip", ("merge", "bundle.zip", "--root", "merged")),
    Kind("lewel-bench.toml", ("table", "1", "--suite", "mine")),
    Kind("record", ("status", "--root", "runs")),
    Kind("record", ("table", "1", "--suite", "shapes", "--root", "runs")),
    Kind("spec", ("status", "--root", "runs")),
    Kind("coco/annotations/instances_train2017.json", ("data", "check", "coco")),
    Kind("coco/train2017/image", ("data", "check", "coco", "--full")),
    Kind("VOCdevkit/VOC2007/Annotations/label", ("data", "check", "VOCdevkit")),
    Kind("VOCdevkit/VOC2007/ImageSets/Main/trainval.txt", ("data", "check", "VOCdevkit")),
    Kind("images/train/class0/000.jpg", ("data", "check", "images", "--full")),
]


class Marks:
    """What a pickle calls if anything in it is called."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (MARKER,)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small valid input of each kind."""
    folder = tmp_path_factory.mktemp("inputs")
    state = build(Backbone(arch="resnet18", width=16)).state_dict()
    torch.save({"state_dict": state}, folder / "zipped.pth")
    torch.save({"state_dict": state}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({f"model.trunk.{k}": v for k, v in state.items()}, folder / "own.pth")
    (folder / "plain.safetensors").write_bytes(save(state))
    (folder / "layout.toml").write_text(LAYOUT)
    (folder / "lewel-bench.toml").write_text(SITE)
    write_images(folder / "images")
    make_coco(folder / "coco", {"train2017": 8, "val2017": 4})
    sets = {(2007, "trainval"): 6, (2007, "test"): 4, (2012, "trainval"): 6}
    make_voc(folder / "VOCdevkit", sets)
    for seed in range(2):
        finish(folder / "runs", "lewel_m_200ep", "linear_lars", seed, metrics={"top1": 70.0})
    bundle.write(folder / "runs", folder / "bundle.zip")
    return folder


def _place(folder: Path, kind: Kind) -> Path:
    """The file that is damaged: any record, spec, image or label where the kind names just that."""
    parent, name = (folder / kind.file).parent, Path(kind.file).name
    if name in ("record", "spec"):
        return min((folder / "runs").glob(f"*/{name}.json"))
    return min(parent.iterdir()) if name in ("image", "label") else folder / kind.file


# --- How a file is damaged ---------------------------------------------------------------------

HOSTILE = [
    b"[" * 5000, b"{" * 5000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"-1", b"NaN", b"Infinity",
    b"null", b'""', b"[]", b"{}", b"\x1b]0;x\x07", "\u202e".encode(), b"\x00" * 64, b"\xff\xfe",
    b"../../etc/passwd", b"<!ENTITY a 'aaaaaaaa'>", b"(" * 3000, b"1000000000000",
]  # fmt: skip


def _flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 4, 64])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _with_a_part_removed(data: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(data))
    return data[:first] + data[first + draw.choice([1, 7, 300]) :]


def _with_a_part_repeated(data: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(data))
    return data[:first] + data[first : first + 200] * draw.choice([2, 500]) + data[first:]


def _with_hostile_bytes(data: bytes, draw: random.Random) -> bytes:
    """Hostile bytes in place of a value of a text, or anywhere in a binary file."""
    ends = [i for i, byte in enumerate(data[:100_000]) if byte in b',}]>"\n']
    at = draw.choice(ends) if ends else draw.randrange(len(data))
    return data[:at] + draw.choice(HOSTILE) + data[at:]


def _grown(data: bytes, draw: random.Random) -> bytes:
    return data + draw.choice([b" ", b"\x00", b"[", b"A"]) * (64 << 20)


def _executable(data: bytes, draw: random.Random) -> bytes:
    """A pickle that calls something, bare or as the table of contents of PyTorch's archive."""
    evil = pickle.dumps({"state_dict": {"conv1.weight": Marks()}}, draw.choice([0, 2, 4]))
    if draw.random() < 0.5:
        return evil
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("archive/data.pkl", evil)
        written.writestr("archive/version", b"3\n")
    return archive.getvalue()


CHANGES = [
    _flipped, _truncated, _with_a_part_removed, _with_a_part_repeated, _with_hostile_bytes,
    _with_hostile_bytes, _grown, _executable,
]  # fmt: skip


def _replaced(path: Path, draw: random.Random) -> None:
    """Put something that is no regular file in the place of `path`."""
    path.unlink()
    kind = draw.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.symlink_to(["/dev/zero", path.name, "/nonexistent"][kind - 2])


def damage(path: Path, draw: random.Random) -> str:
    """Damage the file; returns what was done."""
    if draw.random() < 0.15:
        _replaced(path, draw)
        return "replaced"
    changed: Callable[[bytes, random.Random], bytes] = draw.choice(CHANGES)
    data = path.read_bytes()
    path.unlink()  # a link to the undamaged one
    path.write_bytes(changed(data, draw))
    return changed.__name__


# --- The command, measured ---------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command, its seconds of CPU and its peak memory in MB, those of its
    children included."""

    code: int | str | None
    output: str
    cpu_s: float
    memory_mb: float


def _run(folder: Path, arguments: tuple[str, ...], answer: Connection) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment(LEWEL_BENCH_CONFIG=str(folder / "lewel-bench.toml")))
    output = os.open(folder / "output", os.O_CREAT | os.O_RDWR)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        code: int | str | None = main(list(arguments))
    except SystemExit as left:
        code = left.code
    sys.stdout.flush()
    sys.stderr.flush()
    own, children = (
        resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    spent = own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime
    spent += children.ru_utime + children.ru_stime
    answer.send((code, spent, max(own.ru_maxrss, children.ru_maxrss) / 1024))


def _answer(folder: Path, arguments: tuple[str, ...]) -> Answer:
    context = multiprocessing.get_context("fork")  # the imports are paid once
    actual, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(folder, arguments, theirs))
    process.start()
    theirs.close()
    process.join(WALL_S)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"still running after {WALL_S:.0f} s: {' '.join(arguments)}")
    output = (folder / "output").read_bytes().decode(errors="replace")
    if not actual.poll():
        pytest.fail(f"exit code {process.exitcode} without an answer:\n{output[-2000:]}")
    try:
        return Answer(*_with_output(actual.recv(), output))
    except EOFError:
        pytest.fail(f"a traceback, exit code {process.exitcode}:\n{output[-2000:]}")


def _with_output(
    sent: tuple[int | str | None, float, float], output: str
) -> tuple[int | str | None, str, float, float]:
    code, cpu_s, memory_mb = sent
    return code, output, cpu_s, memory_mb


@pytest.fixture(scope="session")
def undamaged(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Answer]:
    """What the command of a kind answers to the valid input, once a session."""
    answers: dict[Kind, Answer] = {}

    def answer(kind: Kind) -> Answer:
        if kind not in answers:
            folder = tmp_path_factory.mktemp("undamaged") / "inputs"
            shutil.copytree(inputs, folder, copy_function=os.link)
            answers[kind] = _answer(folder, kind.command)
            assert answers[kind].code == 0, answers[kind].output
        return answers[kind]

    return answer


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_input_is_answered_in_bounds(
    seed: int, inputs: Path, undamaged: Callable[[Kind], Answer], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    folder = tmp_path / "inputs"
    shutil.copytree(inputs, folder, copy_function=os.link)
    done = damage(_place(folder, kind), draw)
    valid, answer = undamaged(kind), _answer(folder, kind.command)
    what = f"seed {seed}, {kind.file} {done}: {json.dumps(kind.command)}\n{answer.output[-2000:]}"
    print(what)
    assert answer.code in (0, 1, 2), what
    assert "Traceback" not in answer.output, what
    assert not (folder / MARKER).exists(), what
    assert answer.code == 0 or len(answer.output) < 20_000, what
    assert answer.cpu_s - valid.cpu_s < CPU_S, f"{answer.cpu_s:.1f} s of CPU: {what}"
    assert answer.memory_mb - valid.memory_mb < MEMORY_MB, f"{answer.memory_mb:.0f} MB: {what}"
