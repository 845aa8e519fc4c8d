"""Stands in for the process that computes a job: ticks, saves, handles signals and commits.

    python worker.py FOLDER

`FOLDER/spec.json`: ticks, tick_s, save_every, fault ("", raise, nan, oom, sigkill, leave).
The result is a function of the ticks alone, so an interrupted job must give the same bytes.
"""

import hashlib
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from lewel_bench.files import FULL, ClaimLost, create_json, write_json
from lewel_bench.slurm import attempt
from lewel_bench.slurm.in_job import EXIT

stop: list[int] = []


def main() -> int:
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text())
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: stop.append(number))
    saved = sorted(folder.glob("checkpoint-*"))
    state = json.loads(saved[-1].read_text()) if saved else {"tick": 0, "value": folder.name}
    fault = spec.get("fault", "")
    if fault and not (folder / "mended").exists():
        if fault == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "oom" and os.environ["LEWEL_BENCH_HALVINGS"] == "0":
            return EXIT["oom"]
        if fault in ("nan", "raise"):
            message = {"message": f"a test's {fault}"}
            (folder / "failure.json").write_text(json.dumps(message))
            return EXIT["nan"] if fault == "nan" else 1
        if fault == "leave":
            return 0
    with open(folder / "ticks.log", "a") as log:
        while state["tick"] < spec["ticks"]:
            time.sleep(spec.get("tick_s", 0))
            state["tick"] += 1
            state["value"] = hashlib.sha256(state["value"].encode()).hexdigest()
            log.write(f"{state['tick']} {os.environ.get('SLURMD_NODENAME')} {os.getpid()}\n")
            log.flush()
            if stop or state["tick"] % spec.get("save_every", 10**9) == 0:
                write_json(folder / f"checkpoint-{state['tick']:08d}", state)
            if stop:
                return EXIT["stopped"]
    try:
        attempt.check_claim()
    except ClaimLost:
        return EXIT["fenced"]
    first = create_json(folder / "record.json", {"value": state["value"]})
    with open(folder / "commits.log", "a") as log:
        log.write(f"{'first' if first else 'late'} {os.getpid()}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        with suppress(OSError):  # the log is on the full disk too
            print(error, file=sys.stderr, flush=True)
        os._exit(EXIT["disk full" if error.errno in FULL else "io"])
