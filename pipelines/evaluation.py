"""What is measured of a model on the test split, and how: shared by baseline and validate."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
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
from pipelines.runtimes import Operator

Outputs = list[NDArray[Any]]

# Every metric that a gate can bound; `validate` writes each, null where this machine cannot measure it.
METRICS = {
    "agreement": "share of images (of detectors: of objects) of which candidate and pruned FP32 model say the same",
    "calibration_overlap": "calibration images that are, or nearly are, test images; an INT8 target allows none",
    "changed_elsewhere": "share of predictions that another runtime or instruction set changes, at most",
    "compression": "bytes of the teacher (of a given model: of itself) in FP32 ONNX / bytes of the artifact",
    "drop_fp32": "points of the task metric lost against the pruned FP32 model",
    "drop_teacher": "points of the task metric lost against the teacher",
    "drop_worst_slice": "points lost against the pruned FP32 model in the slice (class, brightness) that loses most",
    "energy_mj": "millijoules of the processor package per image, where the machine counts them",
    "int8_share": "share of multiply-adds that the runtime really executes in INT8; an INT8 target needs half of them",
    "kept_fp32": "task metric / that of the pruned FP32 model; also as a tier: 95%, 99%, 99.9%",
    "kept_teacher": "task metric / that of the teacher; also as a tier",
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
TIMED: tuple[str, ...] = ("p50_ms", "p95_ms", "p99_ms", "load_ms", "peak_memory_mb", "energy_mj", "throughput_per_s")
TIMED += ("fp32_p50_ms", "speedup", "speedup_teacher")  # null of an artifact that cannot run here


class Measure(Section):
    """How models are measured."""

    threads: int = Field(ge=1)
    warmup: int = Field(ge=1, description="Runs before counting.")
    runs: int = Field(ge=20, description="Counted runs of one image.")
    batch: int = Field(ge=1, description="Images at once, for the throughput and for the task metric.")
    resamples: int = Field(ge=100, description="Bootstrap resamples of the intervals.")
    elsewhere: int = Field(
        ge=1, description="Test images on which other runtimes and instruction sets run the artifact too."
    )


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

    @cached_property
    def slices(self) -> dict[str, NDArray[np.int64]]:
        """Parts of the split that are also scored on their own: those of the task, and thirds by brightness."""
        brightness = self.dataset.column("brightness")[self.rows]
        edges = np.quantile(brightness, (1 / 3, 2 / 3))
        thirds = np.searchsorted(edges, brightness, side="right")
        parts = {f"brightness {name}": np.flatnonzero(thirds == n) for n, name in enumerate(("low", "middle", "high"))}
        found = {**self.task.slices(self.truth, self.dataset.classes), **parts}
        return {name: places for name, places in found.items() if len(places)}

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
            **self.task.details(outputs, self.truth),
            "slices": {n: self.task.scorer(outputs, self.truth, n)(places) for n, places in self.slices.items()},
            "images": len(self.rows),
        }

    def drop(self, name: str, reference: Outputs | None, outputs: Outputs) -> dict[str, float | None]:
        """Return the points lost from `reference` to `outputs`, and the share kept, with paired-bootstrap intervals.

        Without a reference, which the teacher of a given model is, all are None.
        """
        if reference is None:
            return dict.fromkeys(f"{what}_{name}{end}" for what in ("drop", "kept") for end in ("", "_low", "_high"))
        if outputs is reference:
            kept = dict.fromkeys((f"kept_{name}{end}" for end in ("", "_low", "_high")), 1.0)
            return {**dict.fromkeys((f"drop_{name}{end}" for end in ("", "_low", "_high")), 0.0), **kept}
        before, after = self.task.scorer(reference, self.truth), self.task.scorer(outputs, self.truth)
        bootstrap = len(self.rows), self.measure.resamples, self.seed
        low, high = statistics.paired(before, after, *bootstrap)
        least, most = statistics.paired(after, before, *bootstrap, compare=_share)
        return {
            f"drop_{name}": 100 * (before(None) - after(None)),
            f"drop_{name}_low": 100 * low,
            f"drop_{name}_high": 100 * high,
            f"kept_{name}": _share(after(None), before(None)),
            f"kept_{name}_low": least,
            f"kept_{name}_high": most,
        }

    def worst_slice(self, reference: Outputs, outputs: Outputs) -> dict[str, Any]:
        """Return the points lost in the slice that loses most.

        The interval is that of all slices at once: its ends are the largest low and the largest high end of any, so
        that a bound is kept when every slice keeps it, and broken when one surely breaks it.
        """
        found = []
        for name, places in self.slices.items():
            before, after = (self.task.scorer(o, self.truth, name) for o in (reference, outputs))
            low, high = statistics.paired(
                partial(_within, before, places),
                partial(_within, after, places),
                len(places),
                self.measure.resamples,
                self.seed,
            )
            found.append((100 * (before(places) - after(places)), 100 * low, 100 * high, name, len(places)))
        widest = max(found, key=lambda f: f[2])
        return {
            "drop_worst_slice": max(f[0] for f in found),
            "drop_worst_slice_low": max(f[1] for f in found),
            "drop_worst_slice_high": widest[2],
            "drop_worst_slice_images": widest[4],
            "least_sure_slice": widest[3],
            "worst_slice": max(found)[3],
        }


def read(data: Path, onnx: Path, split: str = "test") -> TestSet:
    """Return the test split (or another), preprocessed as `preprocess.json` says."""
    dataset = Dataset(data)
    task, rows = tasks.load(value("task")), dataset.rows(split)
    preprocess = Preprocess.from_dict(read_json(onnx / "preprocess.json"))
    truth = task.truth(dataset, rows, preprocess, read_json(onnx / "model.json").get("postprocess"))
    return TestSet(dataset, rows, preprocess, task, truth, section("measure", Measure), value("seed"))


def int8_share(operators: list[Operator]) -> float | None:
    """Return the share of multiply-adds in operators that ran in INT8 (None: there are no multiply-adds)."""
    total = sum(o.multiply_adds for o in operators)
    return sum(o.multiply_adds for o in operators if o.precision == "int8") / total if total else None


def latency(times: list[float]) -> dict[str, float]:
    """Return the percentiles of latencies in milliseconds."""
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def _within(score: statistics.Scorer, places: NDArray[np.int64], sample: NDArray[np.int64] | None) -> float:
    return score(places if sample is None else places[sample])


def _share(after: float, before: float) -> float:
    return after / before if before else 1.0


def write_outputs(path: Path, outputs: Outputs) -> None:
    """Write outputs as arrays `0`, `1`, ... of an .npz file."""
    with write_file(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **{str(n): output for n, output in enumerate(outputs)})  # type: ignore[arg-type]


def read_outputs(path: Path) -> Outputs:
    """Read what `write_outputs` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return [file[str(n)] for n in range(len(file.files))]
