"""YOLO26n at 320 pixels on a set of boxes in Pascal VOC form: FP32 and INT8 on two runtimes, and what a teacher gives.

Trained from scratch, on the CPU, for few epochs: drops and ratios mean something, the metric itself is far from what
the network can do.
"""

import argparse
import contextlib
import os
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from benchmarks.line import call
from tests import line

BATCH, LR = 4, 0.002
EPOCHS = {"train": 8, "distill": 6, "prune": 3}
MODEL = {"family": "ultralytics", "model": "yolo26n.yaml", "weights": None, "trainer": {"mosaic": 0.0, "nbs": BATCH}}
LOSS = {"temperature": 1.0, "labels": 1.0, "logits": 0.0, "features": 6.0}
TARGETS = {
    "openvino-int8": {
        "runtime": "openvino",
        "options": {"preset": "performance", "bias_correction": "fast", "ranges": "mean_minmax", "smooth_quant": False},
    },
    "onnxruntime-int8": {
        "runtime": "onnxruntime",
        "options": {
            "ranges": "minmax", "per_channel": True, "activations": "u8", "operators": "all", "reduce_range": False
        },
    },
}  # fmt: skip


def schedule(*stages: str) -> dict[str, Any]:
    """Return a schedule with the epochs of all of `stages`."""
    epochs = sum(EPOCHS[stage] for stage in stages)
    return {"epochs": epochs, "batch": BATCH, "lr": LR, "weight_decay": 0.0005, "warmup": 0.05}


def project(root: Path, data: Path) -> Path:
    """Make a copy of the project whose data are `data` and whose models are YOLO26n; one that is there goes on."""
    if root.is_dir():
        return root
    root.mkdir(parents=True)
    line.copy(root, example="detection")
    file = root / "params.yaml"
    declared = yaml.safe_load(file.read_text())
    declared |= {
        "threads": os.cpu_count(),
        "input": {"height": 320, "width": 320, "resize": "letterbox", "mean": [0.0] * 3, "std": [1.0] * 3},
        "augment": {"rotate": 0, "shift": 0.1, "scale": 0.3, "flip": True},
        "teacher": MODEL,
        "train": schedule("train"),
        "student": MODEL,
        "distill": {"schedule": schedule("distill"), "loss": LOSS},
        "prune": {"ratio": 0.3, "round_to": 8, "schedule": schedule("prune"), "loss": LOSS},
        "targets": {
            name: {
                **target, "precision": "int8", "device": "cpu", "search": "fast", "aim": {"drop_fp32": {"max": 0.5}},
                "gates": {"drop_fp32": {"max": 1.0}},
            }
            for name, target in TARGETS.items()
        },
    }  # fmt: skip
    declared["data"] |= {"source": {"format": "voc", "path": str(data.resolve())}, "splits": {"val": 0.1, "test": 0.3}}
    declared["contract"] |= {"duplicates": "warn", "boxes": None}
    declared["calibrate"]["images"] = 48
    declared["measure"] |= {"threads": os.cpu_count(), "warmup": 20, "runs": 200, "batch": 8}
    file.write_text(yaml.safe_dump(declared))
    return root


def main() -> None:
    """Print the tables; write them into docs/how-to/detection.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder in Pascal VOC form, such as BCCD")
    parser.add_argument("folder", type=Path, help="where the project is made; one that is there goes on")
    options = parser.parse_args()
    root = project(options.folder.resolve(), options.data)
    call(root, ["dvc", "repro", "convert"])


if __name__ == "__main__":
    main()
