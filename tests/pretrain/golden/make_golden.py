"""Write golden/*.json: what the official code gives for weights and views by formula.

    LEWEL_BENCH_REFERENCE=<folder> PYTHONPATH=tests python tests/pretrain/golden/make_golden.py

`tests/official.py` says what lies in that folder. The numbers come from the official classes,
losses, optimizer and momentum update alone; test_parity.py compares our methods with them where
that code is absent. Run it again only when a case of official.CASES changes.
"""

import contextlib
import json
from pathlib import Path

import official
import torch


def main() -> None:
    for name, case in official.CASES.items():
        model = official.build(case)
        with official.on_cpu() if case.repository == "moco" else contextlib.nullcontext():
            trace = official.run_official(case, model, torch.float64)
        numbers = {"source": f"{case.repository} {case.official}", **official.summary(trace)}
        path = Path(__file__).parent / f"{name}.json"
        path.write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
        print(name, numbers["loss"])


if __name__ == "__main__":
    main()
