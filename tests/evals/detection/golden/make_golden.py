"""Write golden/*.json: what detectron2 gives for weights and images by formula.

    PYTHONPATH=tests python tests/evals/detection/golden/make_golden.py

needs detectron2 (at official_detection.COMMIT). It runs in double precision, so that the numbers
mean the same on every processor; test_parity.py compares our detectors with them where detectron2
is absent. Run it again only when a case of detection_cases.GOLDEN changes.
"""

import json
from pathlib import Path

import detection_cases as cases
import official_detection as official
import torch


def main() -> None:
    for name, case in cases.GOLDEN.items():
        with official.in_double():
            model = official.official(case, torch.float64)
            numbers = cases.summary(official.run_official(case, model))
        path = Path(__file__).parent / f"{name}.json"
        path.write_text(
            lines({"source": f"detectron2 @{official.COMMIT}", **numbers}) + "\n", "utf-8"
        )
        print(name, numbers["losses"])


def lines(value: object, depth: int = 0) -> str:
    """JSON with one line for a tensor or a kind of detections."""
    if depth < 3 and isinstance(value, dict):
        inner = (f"{json.dumps(k)}: {lines(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n}"
    if depth == 1 and isinstance(value, list):
        return "[\n" + ",\n".join(lines(v, depth + 1) for v in value) + "\n]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
