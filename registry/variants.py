"""Reads what the line made: one record for each model that MLflow shall know."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines import params
from pipelines.files import read_json, sha256_bytes, sha256_file, to_json

STAGES = {"teacher": "train", "student": "distill", "pruned": "prune"}
SHARED = ("project", "task", "seed", "threads", "data", "input", "augment")
SECTIONS = {  # of params.yaml, that decide the weights of each
    "teacher": (*SHARED, "teacher", "train"),
    "student": (*SHARED, "student", "distill"),
    "pruned": (*SHARED, "student", "prune"),
}


@dataclass(frozen=True)
class Variant:
    """A model of the line: an FP32 variant with its `onnx` file, or a target with its `bundle`.

    `files` holds the SHA-256 of the files that somebody may find without the rest, and ask where they come from.
    `report` is the page of the build that it is part of.
    """

    name: str
    stage: str
    content_hash: str
    data_hash: str
    params: dict[str, str]
    metrics: dict[str, float]
    curves: tuple[dict[str, str], ...]
    plots: tuple[Path, ...]
    files: tuple[str, ...]
    report: Path | None = None
    pictures: tuple[Path, ...] = ()  # of the report, where the target differs most from FP32
    onnx: Path | None = None
    bundle: Path | None = None
    bundle_hash: str | None = None
    verdict: str | None = None
    tried: tuple[dict[str, Any], ...] = ()  # by the search of its scheme

    @property
    def record(self) -> str:
        """What it is: the bundle of a target, the weights of an FP32 variant. It is logged once."""
        return f"{self.name}:{self.bundle_hash or self.content_hash}"

    @cached_property
    def measured(self) -> str:
        """The SHA-256 of its metrics: weights that are measured anew keep their run."""
        return sha256_bytes(to_json(self.metrics).encode())


def read(build: Path) -> list[Variant]:
    """Return the FP32 variants and the targets of the folder `build`, in the order of the line."""
    # The dataset is known by the hash that stands in every bundle's evidence.
    from pipelines.export import data_hash

    data = data_hash(build / "data")
    return [
        *(_fp32(build, name, data) for name in STAGES if (build / "onnx" / f"{name}.onnx").is_file()),
        # The folder of a target that could not be built on this machine has no evidence.
        *(_target(build, p.parent, data) for p in sorted((build / "bundles").glob("*/evidence.json"))),
    ]


def _fp32(build: Path, name: str, data: str) -> Variant:
    folder, onnx = build / name, build / "onnx" / f"{name}.onnx"
    trained = folder.is_dir()  # or given, as an ONNX file
    curves: tuple[dict[str, str], ...] = ()
    if trained:
        with (folder / "curves.csv").open(encoding="utf-8", newline="") as file:
            curves = tuple(csv.DictReader(file))
    files = [*([folder / "model.safetensors"] if trained else []), onnx]
    return Variant(
        name=name if trained else "given",
        stage=STAGES[name] if trained else "convert",
        content_hash=sha256_file(files[0]),
        data_hash=data,
        params=_flat({k: v for k, v in params.read().items() if k in SECTIONS[name]}),
        metrics=_numbers(read_json(build / "baseline" / "metrics.json").get(name, {})),
        curves=curves,
        plots=(),
        files=tuple(sha256_file(file) for file in files),
        report=_report(build),
        onnx=onnx,
    )


def _target(build: Path, bundle: Path, data: str) -> Variant:
    evidence = read_json(bundle / "evidence.json")
    everything = params.read()
    return Variant(
        name=bundle.name,
        stage="export",
        content_hash=evidence["artifact"]["sha256"],
        data_hash=data,
        params=_flat({**everything, "targets": {bundle.name: everything["targets"].get(bundle.name, {})}}),
        metrics=_numbers(evidence["metrics"]),
        curves=(),
        plots=tuple(sorted((build / "calibration").glob("**/*.png"))),
        pictures=tuple(sorted((build / "report" / "pictures" / bundle.name).glob("*.jpg"))),
        files=tuple(evidence["artifact"]["files"].values()),
        report=_report(build),
        bundle=bundle,
        bundle_hash=sha256_file(bundle / "SHA256SUMS"),
        verdict=evidence["verdict"]["verdict"],
        tried=tuple(_tried(row) for row in read_json(bundle / "quantize.json").get("tried", [])),
    )


def _tried(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the search with plain values alone, as a table takes it."""
    options = " ".join(f"{k}={v}" for k, v in sorted(row["options"].items()))
    return {**row, "options": options, "kept": " ".join(row["kept"])}


def _report(build: Path) -> Path | None:
    page = build / "report" / "index.html"
    return page if page.is_file() else None


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in _flat(part, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): str(value)}


def _numbers(value: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in sorted(value.items()) if isinstance(v, (int, float)) and not isinstance(v, bool)}
