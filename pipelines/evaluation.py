"""What is measured of a model on the test split, and how: shared by baseline and validate."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import statistics, tasks
from pipelines.data import Dataset
from pipelines.files import read_json, write_file
from pipelines.params import Section, section, value
from pipelines.preprocess import Preprocess

Outputs = list[NDArray[Any]]

# Every metric that a gate can bound; `validate` writes each, null where this machine cannot measure it.
METRICS = {
    "agreement": "share of images on which the candidate and the pruned FP32 model say the same",
    "compression": "bytes of the teacher in FP32 ONNX / bytes of the artifact",
    "drop_fp32": "points of the task metric lost against the pruned FP32 model",
    "drop_teacher": "points of the task metric lost against the teacher",
    "energy_mj": "millijoules of the processor package per image, where the machine counts them",
    "load_ms": "milliseconds from the file to the first answer",
    "p50_ms": "median latency of one image, in milliseconds",
    "p95_ms": "95th percentile of the latency",
    "p99_ms": "99th percentile of the latency",
    "peak_memory_mb": "MiB of resident memory at most, of the whole process",
    "size_bytes": "bytes of the artifact",
    "speedup": "median latency of the same model in FP32 in the same runtime / of the candidate",
    "speedup_teacher": "median latency of the teacher in FP32 in the same runtime / of the candidate",
    "throughput_per_s": "images per second in batches",
}


class Measure(Section):
    """How models are measured."""

    threads: int = Field(ge=1)
    warmup: int = Field(ge=1, description="Runs before counting.")
    runs: int = Field(ge=20, description="Counted runs of one image.")
    batch: int = Field(ge=1, description="Images at once, for the throughput and for the task metric.")
    resamples: int = Field(ge=100, description="Bootstrap resamples of the intervals.")


@dataclass(frozen=True)
class TestSet:
    """The test split as models see it, and the truth."""

    dataset: Dataset
    rows: NDArray[np.int64]
    preprocess: Preprocess
    task: ModuleType
    truth: Any
    measure: Measure
    seed: int

    @property
    def shape(self) -> list[int]:
        """C, H, W of one input."""
        return [self.preprocess.channels, self.preprocess.height, self.preprocess.width]

    def outputs(self, predict: Callable[[NDArray[np.float32]], Outputs]) -> Outputs:
        """Return a model's outputs for the whole split, concatenated."""
        from tqdm import tqdm

        parts = []
        for start in tqdm(range(0, len(self.rows), self.measure.batch), desc="test", unit=" batches", mininterval=1):
            rows = self.rows[start : start + self.measure.batch]
            parts.append(predict(np.stack([self.preprocess(self.dataset.image(row)) for row in rows])))
        return [np.concatenate(output) for output in zip(*parts, strict=True)]

    def score(self, outputs: Outputs) -> dict[str, Any]:
        """Return the task metric with its interval, and its value per slice."""
        metric = self.task.METRIC
        scorer = self.task.scorer(outputs, self.truth)
        low, high = statistics.interval(scorer, len(self.rows), self.measure.resamples, self.seed)
        return {
            metric: scorer(None),
            f"{metric}_low": low,
            f"{metric}_high": high,
            "slices": self.task.slices(outputs, self.truth, self.dataset.classes),
            "images": len(self.rows),
        }

    def drop(self, name: str, reference: Outputs, outputs: Outputs) -> dict[str, float]:
        """Return the points lost from `reference` to `outputs`, with the paired-bootstrap interval."""
        if outputs is reference:
            return {f"drop_{name}": 0.0, f"drop_{name}_low": 0.0, f"drop_{name}_high": 0.0}
        before, after = self.task.scorer(reference, self.truth), self.task.scorer(outputs, self.truth)
        low, high = statistics.paired(before, after, len(self.rows), self.measure.resamples, self.seed)
        points = 100 * (before(None) - after(None))
        return {f"drop_{name}": points, f"drop_{name}_low": 100 * low, f"drop_{name}_high": 100 * high}


def read(data: Path, onnx: Path) -> TestSet:
    """Return the test split, preprocessed as `preprocess.json` says."""
    dataset = Dataset(data)
    task, rows = tasks.load(value("task")), dataset.rows("test")
    preprocess = Preprocess.from_dict(read_json(onnx / "preprocess.json"))
    truth = task.truth(dataset, rows)
    return TestSet(dataset, rows, preprocess, task, truth, section("measure", Measure), value("seed"))


def latency(times: list[float]) -> dict[str, float]:
    """Return the percentiles of latencies in milliseconds."""
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def write_outputs(path: Path, outputs: Outputs) -> None:
    """Write outputs as arrays `0`, `1`, ... of an .npz file."""
    with write_file(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **{str(n): output for n, output in enumerate(outputs)})  # type: ignore[arg-type]


def read_outputs(path: Path) -> Outputs:
    """Read what `write_outputs` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return [file[str(n)] for n in range(len(file.files))]
