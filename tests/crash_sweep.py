"""Kill a run before its n-th file change, tear its writes, fill its disk; then run it again.

    python tests/crash_sweep.py [--kills 60] [--failures 40] [--seed N]

The run pre-trains and evaluates by linear, semi, kNN and detection at a tiny scale, with a
checkpoint at every step. A change is whatever creates, opens for writing, renames, links, removes
or flushes a file under the run root. Each disturbed run is a fork of this process, which has
imported torch and computed nothing; half of them have no hard links. After each the same command
runs to its end, and then:

- records, weights and predictions equal those of an undisturbed run bit for bit;
- no record was written and no finished job started again, and an interrupted job went on from its
  newest intact checkpoint;
- a full disk was named with what to do, without a traceback;
- `gc` had listed every torn file, and after it the root holds the files of an undisturbed run.
"""

import argparse
import errno
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from command_line import ENVIRONMENT, write_images

os.environ.update(ENVIRONMENT)  # before anything imports torch
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"

KINDS = ("kill", "kill", "torn")  # of the kills, in turn
FULL = ("full once", "full from then on")
LAST = 40  # changes: the last of a run only remove files
TORN_BYTES = 20  # of what was to be written
EVALS = ("linear_lars", "semi_1pct", "knn", "voc07_det_c4")
EVALUATION = {"image_size": 32, "resize": 36, "batch": 16, "held_out": 6}
SETTINGS: dict[str, Any] = {
    "image_size": 32, "backbone.width": 8, "epochs": 2, "batch": 16, "bn_group": 8,
    "schedule.warmup_epochs": 1, "args.hidden": 16, "args.queue": 64, "args.dim": 16,
    **{f"linear_lars.{k}": v for k, v in {**EVALUATION, "epochs": 2}.items()},
    **{f"semi_1pct.{k}": v for k, v in {
        **EVALUATION, "epochs": 2, "milestones": [1], "head_lrs": [0.1]}.items()},
    "knn.image_size": 32, "knn.resize": 36,
    **{f"voc07_det_c4.{k}": v for k, v in {
        "held_out": 4, "batch": 2, "steps": 3, "lrs": [0.01], "milestones": [2], "warmup": 1,
        "min_sizes": [64], "test_size": 64, "precise_bn": 2, "rois": 8, "rpn_samples": 16,
        "pre_nms": [40, 20], "post_nms": [20, 10], "head_width": 8, "fc_width": 16, "trials": 1,
        "refit": True}.items()},
}  # fmt: skip


@dataclass(frozen=True)
class Disturbance:
    """What happens at a file change, the first of which is 1; a torn write is the next one."""

    kind: str
    at: int
    links: bool  # whether the file system has hard links

    def __str__(self) -> str:
        return f"{self.kind} at change {self.at}{'' if self.links else ', no hard links'}"


class Sweep:
    """The undisturbed run, and others that must end as it did."""

    def __init__(self, place: Path) -> None:
        from lewel_bench.pretrain import shapes

        self.place = place
        counts = dict.fromkeys(shapes.Counts.model_fields, 1)
        counts |= {"voc2007_train": 6, "voc2007_val": 6, "voc2007_test": 4}
        self.images = write_images(place / "images")
        self.voc = shapes.make(place / "shapes", counts=shapes.Counts(**counts)) / "VOCdevkit"
        root = place / "undisturbed"
        code, message, self.modules = self.run(root)
        assert code == 0, message
        self.changes = int((place / "changes").read_text())
        self.expected = results(root)
        message = " ".join(name for name, *_ in self.expected.values())
        assert all(f"{entry} of" in message for entry in EVALS), message
        clear(root)
        self.names = names(root)

    def words(self, root: Path) -> list[str]:
        """The command line."""
        words = ["run", "--suite", "shapes", "--method", "moco_v2", "--epochs", "200"]
        words += ["--evals", ",".join(EVALS), "--root", str(root)]
        words += ["--data", str(self.images), "--data", f"voc={self.voc}"]
        words += ["--workers", "0", "--device", "cpu", "--save-every", "0.0001"]
        return [
            *words,
            *(w for k, v in SETTINGS.items() for w in ("--set", f"{k}={json.dumps(v)}")),
        ]

    def run(self, root: Path, disturbance: Disturbance | None = None) -> tuple[int, str, list[str]]:
        """Run the command in a fork; its exit code (negative: the signal), what it printed, and the
        modules that it imported."""
        out, modules = self.place / "out", self.place / "modules"
        sys.stdout.flush()
        root.mkdir(exist_ok=True)
        child = os.fork()
        if not child:
            self._child(root, disturbance, out, modules)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        imported = modules.read_text().split() if disturbance is None and code == 0 else []
        return code, out.read_text(errors="replace"), imported

    def _child(self, root: Path, disturbance: Disturbance | None, out: Path, modules: Path) -> None:
        code = 70
        try:
            stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.argv = ["lewel-bench", *self.words(root)]
            from lewel_bench.harness.cli import main
            from lewel_bench.harness.jobs import local

            local.Worker = Here
            log_every_step()
            changes = watch(root, disturbance)
            code = main()
            sys.stderr.flush()
            if disturbance is None:
                (self.place / "changes").write_text(str(changes()))
                modules.write_text("\n".join(sys.modules))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def check(self, disturbance: Disturbance) -> str:
        """Disturb a run and end it; what happened. Raises AssertionError where that is wrong."""
        root = self.place / "disturbed"
        shutil.rmtree(root, ignore_errors=True)
        code, message, _ = self.run(root, disturbance)
        if disturbance.kind in FULL:
            assert code in (0, 1, 2), (code, message)
            assert "Traceback" not in message, message
            if code:
                told = [line for line in message.splitlines() if "No space left on device" in line]
                assert told and all("ake room" in line for line in told[-1:]), message
                assert any(str(root) in line for line in told), message
        else:
            assert code in (-signal.SIGKILL, -signal.SIGXFSZ), (code, message)
        torn = [path for path in root.rglob(".*.tmp") if path.is_file()]
        assert set(torn) <= {entry.path for entry in waste(root)}, torn
        before = {path: stamp(path) for path in root.glob("*/record.json")}
        starts = {path.parent.name: events(path.parent, "start") for path in before}
        checkpoints = dict(intact(root))
        begun = {folder: len(events(folder, "start")) for folder in checkpoints}
        code, message, _ = self.run(root)
        assert code == 0, message
        result = results(root)
        other = [(result.get(k), v) for k, v in self.expected.items() if result.get(k) != v]
        assert not other, f"other results: {other}"
        assert {path: stamp(path) for path in before} == before, "a record was written again"
        for key, count in starts.items():
            assert events(root / key, "start") == count, f"{key} was started again"
        for folder, step in checkpoints.items():
            resumed = events(folder, "resumed")
            assert len(events(folder, "start")) == begun[folder] + 1, folder
            assert resumed, f"{folder} began anew, though it had a checkpoint of step {step}"
            if "epoch" not in resumed[-1]:  # a step within an epoch
                assert resumed[-1]["step"] == step, (resumed, step)
        clear(root)
        assert names(root) == self.names, names(root) ^ self.names
        how = f"{len(before)} records, {len(checkpoints)} checkpoints, {len(torn)} torn files"
        return f"{disturbance}: {how}"


class Here:
    """A worker that computes in this process, whose file changes are counted."""

    process = SimpleNamespace(poll=lambda: None)

    def __init__(self, root: Path, settings: Any, answers: Any) -> None:
        self.root, self.settings, self.answers = root, settings, answers

    def start(self, key: str, processes: int) -> None:
        from lewel_bench.harness.jobs import worker

        self.answers.put((self, worker.compute(self.root / key, self.settings, processes)))

    def stop(self) -> None: ...

    def close(self) -> None: ...


def log_every_step() -> None:
    """So that the number of file changes does not depend on the time that steps take."""
    from lewel_bench.pretrain import pacer

    pacer.LOG_EVERY_S = -1.0


def watch(root: Path, disturbance: Disturbance | None) -> Callable[[], int]:
    """Count the file changes of this process under `root`, and disturb it; the count so far."""
    count, place = 0, f"{root}/"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it

    def change(grows: bool, path: str | None = None) -> None:
        nonlocal count
        count += 1
        if disturbance is None or count < disturbance.at:
            return
        if disturbance.kind == "torn" and path:
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + TORN_BYTES, resource.RLIM_INFINITY))
        elif disturbance.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif disturbance.kind in FULL and grows and (disturbance.kind != FULL[0] or not _once):
            _once.append(count)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    _once: list[int] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        if not os.fspath(arguments[0]).startswith(place):
            return
        if event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            change(event in ("open", "os.mkdir", "os.link"), os.fspath(arguments[0]))

    fsync = os.fsync

    def flush(file: int) -> None:
        change(True)
        fsync(file)

    os.fsync = flush
    if disturbance and not disturbance.links:
        os.link = refuse
    sys.addaudithook(hook)
    return lambda: count


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def results(root: Path) -> dict[str, Any]:
    """What must not depend on how a run went."""
    result = {}
    for path in root.glob("*/record.json"):
        loaded = json.loads(path.read_text())
        files = sorted([*path.parent.glob("*.safetensors"), *path.parent.glob("predictions.*")])
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        result[loaded["key"]] = (
            loaded["name"],
            loaded["metrics"],
            loaded["outcome"],
            loaded["checkpoint"],
            hashes,
        )
    return result


def names(root: Path) -> set[str]:
    """The files of a run root; what each attempt logs for TensorBoard is one name."""
    result = {path.relative_to(root) for path in root.rglob("*") if not path.is_dir()}
    return {str(p.parent) if p.parent.name == "tensorboard" else str(p) for p in result}


def waste(root: Path) -> list[Any]:
    from lewel_bench.harness import garbage, status

    return garbage.waste(root, status.survey(root))


def clear(root: Path) -> None:
    from lewel_bench.harness import garbage

    garbage.clear(waste(root))


def stamp(path: Path) -> tuple[int, int, bytes]:
    return path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    from lewel_bench.results import curves

    path = folder / curves.EVENTS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [event for event in curves.parse_events(lines) if event.get("event") == kind]


def intact(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of jobs without a record that have a whole checkpoint, and its step."""
    for folder in root.glob("*"):
        for path in sorted(folder.glob("checkpoint-*-*.pt"), reverse=True):
            _, step, digest = path.stem.split("-")
            whole = hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest)
            if whole and not (folder / "record.json").exists():
                yield folder, int(step)
                break


def disturbances(kills: int, failures: int, changes: int, seed: int) -> list[Disturbance]:
    """Spread over all changes, those of a kind evenly."""
    chance, result = random.Random(seed), []
    for kinds, count in ((KINDS, kills), (FULL, failures)):
        for i in range(count):
            at = 1 + int((i + chance.random()) * (changes - 1) / count)
            if kinds[i % len(kinds)] == "torn":
                at = min(at, changes - LAST)
            result.append(Disturbance(kinds[i % len(kinds)], at, links=i % 4 < 2))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep; the exit code: 0 where every run ended as it should."""
    parser = argparse.ArgumentParser(description="Kill runs and fill their disks; see this file.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--failures", type=int, default=40)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    asked = parser.parse_args(argv)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="crash-sweep-") as place:
        modules = ("verbs.run", "garbage", "jobs.local", "jobs.worker", "jobs.job", "view")
        for name in (*modules, "plan.data_check"):
            importlib.import_module(f"lewel_bench.harness.{name}")
        sweep = Sweep(Path(place))
        for name in sweep.modules:
            if name.partition(".")[0] in ("torch", "torchvision", "lewel_bench", "numpy"):
                with suppress(ImportError):  # not every name in sys.modules is that of a file
                    importlib.import_module(name)
        print(f"seed {asked.seed}: {sweep.changes} file changes", flush=True)
        chosen = disturbances(asked.kills, asked.failures, sweep.changes, asked.seed)
        for change in chosen:
            try:
                print(sweep.check(change), flush=True)
            except AssertionError as error:
                wrong += 1
                print(f"WRONG: {change}: {error}", flush=True)
    print(f"{asked.kills} kills, {asked.failures} failures: {wrong} ended otherwise")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
