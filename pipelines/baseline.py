"""Measures the FP32 models (teacher, student, pruned) on the test split with ONNX Runtime."""

from pathlib import Path
from typing import Any

from pipelines import evaluation, measure
from pipelines.files import sha256_file, size_of, write_folder, write_json
from pipelines.runtimes import onnxruntime
from pipelines.stage import run

VARIANTS = ("teacher", "student", "pruned")  # a given model is the last alone


def main(data: Path, onnx: Path, out: Path) -> None:
    """Write `out`: `metrics.json`, by variant, and the outputs of each variant as `VARIANT.npz`."""
    test = evaluation.read(data, onnx)
    files = {name: onnx / f"{name}.onnx" for name in VARIANTS if (onnx / f"{name}.onnx").is_file()}
    outputs = {name: test.outputs(onnxruntime.load(file, test.measure.threads)) for name, file in files.items()}
    options = test.measure.model_dump()
    times = measure.interleaved("onnxruntime", files, test.shape, options, "cpu")["times_ms"]
    metrics: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        metrics[name] = {
            **test.score(outputs[name]),
            **test.drop("teacher", outputs.get("teacher"), outputs[name]),
            **test.drop("fp32", outputs["pruned"], outputs[name]),
            **evaluation.latency(times[name]),
            **measure.alone("onnxruntime", file, test.shape, options, "cpu"),
            "agreement": test.task.agreement(outputs["pruned"], outputs[name]),
            "size_bytes": size_of(file),
            "compression": size_of(files.get("teacher", file)) / size_of(file),
            "speedup": 1.0,
            "sha256": sha256_file(file),
        }
        teacher = metrics.get("teacher")
        metrics[name]["speedup_teacher"] = teacher["p50_ms"] / metrics[name]["p50_ms"] if teacher else None
    with write_folder(out) as folder:
        write_json(folder / "metrics.json", metrics)
        for name in files:
            evaluation.write_outputs(folder / f"{name}.npz", outputs[name])


if __name__ == "__main__":
    run(main)
