"""An engine in another Python: a module run there on a written task, its outcome read back.

    python -m MODULE SPEC.json

The engine's process runs this very code, whatever is installed beside it. It writes what it has to
say to standard output, a JSON object a line, and ends as its parent would: after SIGTERM, or once
its parent is gone, it saves and leaves.
"""

import importlib
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

import lewel_bench
from lewel_bench.evals.outcome import Outcome
from lewel_bench.files import Lock, write_atomically
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.report import Report, Stop, Stopped
from lewel_bench.value import Value

SPEC, SPLITS, LOG, LOCK = "engine.json", "engine-splits.pickle", "engine.log", ".engine.lock"
POLL_S = 0.2
ASKED = 75  # EX_TEMPFAIL: stopped after saving


def run(
    python: str,
    module: str,
    protocol: Value,
    arguments: Mapping[str, Any],
    report: Report,
    stop: Stop,
) -> Outcome:
    """What `module`'s `run(protocol, **arguments, report=…, stop=…)` returns in `python`.

    Standard error and other output go to `engine.log` in the folder. Raises what it raises there:
    ValueError, Stopped, OutOfMemoryError, and else RuntimeError with the log's last line.
    """
    folder: Path = arguments["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    mine = f"-{distributed.rank()}" if distributed.world() > 1 else ""
    spec = _write(folder, mine, protocol, arguments)
    with environment() as variables, open(folder / f"{LOG}{mine}", "ab") as log:
        process = subprocess.Popen(
            [python, "-m", module, str(spec)],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables | _own_group(),
            start_new_session=True,  # a Ctrl-C comes once, from here
        )
        try:
            end = _listen(process, report, stop)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
    for name in (spec, folder / f"{SPLITS}{mine}"):
        name.unlink(missing_ok=True)
    return _ended(end, process.returncode, python, folder / f"{LOG}{mine}")


def serve(work: Callable[..., Outcome]) -> int:
    """Do the task of the file named in the arguments; the exit code."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what others print is no message
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_until_closed, args=(asked,), daemon=True).start()

    def say(**message: Any) -> None:
        try:
            print(json.dumps(message), file=channel, flush=True)
        except BrokenPipeError:
            asked.set()

    def report(event: str, /, **fields: Any) -> None:
        say(report=event, fields=fields)

    try:
        protocol, arguments = _read(Path(sys.argv[1]))
        device: torch.device = arguments["machine"].device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what an engine takes for "cuda"
        distributed.start(device)
        with _alone(arguments["folder"]):
            outcome = work(protocol, **arguments, report=report, stop=asked.is_set)
    except Stopped as stopped:
        say(stopped=str(stopped))
        return ASKED
    except (ValueError, OSError) as error:
        say(refused=str(error))
        return 2
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:  # torch 1.13 knows this name too
        say(memory=str(error))
        raise
    if distributed.rank() == 0:
        say(outcome=asdict(outcome))
    else:
        say(outcome={"metrics": outcome.metrics})
    return 0


@contextmanager
def environment() -> Iterator[dict[str, str]]:
    """The environment of another Python: of our packages it sees this one, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="lewel-bench-") as place:
        package = Path(lewel_bench.__file__).parent
        (Path(place) / package.name).symlink_to(package, target_is_directory=True)
        own = {"PYTHONPATH": place, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        foreign = ("PYTHONHOME", "VIRTUAL_ENV")
        yield {k: v for k, v in os.environ.items() if k not in foreign} | own


def _write(folder: Path, mine: str, protocol: Value, arguments: Mapping[str, Any]) -> Path:
    machine: Machine = arguments["machine"]
    content = {
        "type": [type(protocol).__module__, type(protocol).__name__],
        "protocol": protocol.model_dump(mode="json"),
        "candidate": list(arguments["candidate"]),
        "backbone": str(arguments["backbone"].resolve()),
        "splits": f"{SPLITS}{mine}",
        "seed": arguments["seed"],
        "folder": str(folder.resolve()),
        "machine": asdict(machine) | {"device": str(machine.device)},
        "rivals": list(arguments["rivals"]),
        "threads": torch.get_num_threads(),
    }
    # the annotations of a large set are much faster to hand over than to parse again
    write_atomically(folder / f"{SPLITS}{mine}", pickle.dumps(arguments["splits"], protocol=4))
    write_atomically(folder / f"{SPEC}{mine}", json.dumps(content, indent=1))
    return folder / f"{SPEC}{mine}"


def _read(path: Path) -> tuple[Value, dict[str, Any]]:
    content = json.loads(path.read_text())
    module, name = content["type"]
    kind: type[Value] = getattr(importlib.import_module(module), name)
    protocol = kind.model_validate(content["protocol"])
    machine = content["machine"]
    torch.set_num_threads(content["threads"])
    return protocol, {
        "candidate": tuple(content["candidate"]),
        "backbone": Path(content["backbone"]),
        "splits": pickle.loads((path.parent / content["splits"]).read_bytes()),
        "seed": content["seed"],
        "folder": Path(content["folder"]),
        "machine": Machine(**(machine | {"device": torch.device(machine["device"])})),
        "rivals": tuple(content["rivals"]),
    }


def _listen(process: "subprocess.Popen[bytes]", report: Report, stop: Stop) -> dict[str, Any]:
    """The last message; reports are passed on meanwhile, and the first request to stop."""
    assert process.stdout is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_lines, args=(process.stdout, lines), daemon=True).start()
    end: dict[str, Any] = {}
    told = False
    while True:
        if not told and stop():
            process.send_signal(signal.SIGTERM)
            told = True
        try:
            line = lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if line is None:
            return end
        message = json.loads(line)
        if "report" in message:
            report(message["report"], **message["fields"])
        else:
            end = message


def _lines(stream: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _ended(end: dict[str, Any], code: int, python: str, log: Path) -> Outcome:
    if "outcome" in end and code == 0:
        return Outcome(**end["outcome"])
    if "stopped" in end:
        raise Stopped(end["stopped"])
    if "refused" in end:
        raise ValueError(end["refused"])
    if "memory" in end:
        raise torch.OutOfMemoryError(f"{python}: {end['memory']} (full log: {log})")
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    how = (
        f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    )
    raise RuntimeError(f"{python} {how}: {''.join(last)} (full log: {log})")


def _own_group() -> dict[str, str]:
    """The engine's processes, one a rank, make a process group of their own."""
    if distributed.world() == 1:
        return {"WORLD_SIZE": "1"}
    port: list[Any] = [None]
    if distributed.rank() == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = [free.getsockname()[1]]
    torch.distributed.broadcast_object_list(port)
    return {"MASTER_PORT": str(port[0]), "TORCHELASTIC_USE_AGENT_STORE": "False"}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits for the engine of a parent that was killed, which is saving."""
    if distributed.rank() == 0:
        with Lock(folder / LOCK, None):
            yield
    else:
        yield


def _until_closed(asked: threading.Event) -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock a thread may not hold at the end
        pass
    asked.set()
