"""Measures one target's artifact on its real runtime, beside FP32 in the same runtime. It judges nothing."""

import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from pipelines import elsewhere, evaluation, measure, targets
from pipelines.calibration import Calibration
from pipelines.files import read_json, sha256_file, size_of, write_json
from pipelines.stage import StageError, run
from pipelines.targets import Target


def main(
    name: str, data: Path, onnx: Path, baseline: Path, calibration: Path, artifact: Path, out: Path, outputs: Path
) -> None:
    """Write `out`, the metrics of target `name` (JSON), and `outputs`, what its artifact said of the test split (.npz).

    The candidate takes turns in one process with its FP32 twin, the same pruned model, and then with the teacher.
    Raises StageError when an INT8 artifact was not calibrated on the images of `calibration`.
    """
    target, runtime, _ = targets.read(name)
    made = read_json(artifact / "quantize.json")
    if "not_here" in made:
        evaluation.write_outputs(outputs, [])
        write_json(out, {**dict.fromkeys(evaluation.METRICS), "not_here": made["not_here"]})
        return
    test = evaluation.read(data, onnx)
    file = artifact / runtime.FILES[0]
    precision = made["precision"]
    frozen = Calibration(data, calibration)
    if precision == "int8" and not any(frozen.digest.encode() in (artifact / f).read_bytes() for f in runtime.FILES):
        raise StageError(f"{artifact}: was calibrated on other images; run: dvc repro quantize@{name}")
    found = test.outputs(runtime.load(file, test.measure.threads))
    twins = _twins(onnx)
    fp32 = {twin: evaluation.read_outputs(baseline / f"{twin}.npz") for twin in twins}
    if runtime.INSTEAD:
        note = f"not run on {target.runtime}: its answers are those of {runtime.INSTEAD}, and nothing was timed"
        timed: dict[str, float | None] = dict.fromkeys(evaluation.TIMED)
    else:
        note, timed = made.get("chosen"), _timed(target, runtime, file, onnx, test)
    there = elsewhere.compare(runtime, file, test, found)
    operators = runtime.operators(file, test.shape)
    size = sum(size_of(artifact / name) for name in runtime.FILES)
    evaluation.write_outputs(outputs, found)
    write_json(
        out,
        {
            **test.score(found),
            **test.drop("teacher", fp32.get("teacher"), found),
            **test.drop("fp32", fp32["pruned"], found),
            **timed,
            **test.worst_slice(fp32["pruned"], found),
            "precision": precision,
            "chosen": note,
            "kept_operators": len(made["kept"]),
            "int8_share": evaluation.int8_share(operators),
            "int8_operators": sum(o.precision == "int8" for o in operators),
            "operators": len(operators),
            "changed_elsewhere": elsewhere.most_changed(there),
            "elsewhere": there,
            "calibration_overlap": frozen.overlap() if precision == "int8" else None,
            "agreement": test.task.agreement(fp32["pruned"], found),
            "size_bytes": size,
            "compression": size_of(onnx / f"{twins[-1]}.onnx") / size,
            "sha256": {name: sha256_file(artifact / name) for name in runtime.FILES},
        },
    )


def _timed(
    target: Target, runtime: ModuleType, file: Path, onnx: Path, test: evaluation.TestSet
) -> dict[str, float | None]:
    """Return the metrics of `evaluation.TIMED` of an artifact."""
    options = test.measure.model_dump()
    candidate, fp32 = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for twin in _twins(onnx):
            runtime.quantize(onnx / f"{twin}.onnx", None, "fp32", None, Path(folder) / twin)
            files = {"candidate": file, "twin": Path(folder) / twin / runtime.FILES[0]}
            times = measure.interleaved(target.runtime, files, test.shape, options, target.device)["times_ms"]
            candidate[twin], fp32[twin] = times["candidate"], float(np.median(times["twin"]))
    return {
        **evaluation.latency(candidate["pruned"]),
        **measure.alone(target.runtime, file, test.shape, options, target.device),
        "fp32_p50_ms": fp32["pruned"],
        "speedup": fp32["pruned"] / float(np.median(candidate["pruned"])),
        "speedup_teacher": fp32["teacher"] / float(np.median(candidate["teacher"])) if "teacher" in fp32 else None,
    }


def _twins(onnx: Path) -> list[str]:
    """Return the FP32 models beside which an artifact is measured; a given model has no teacher."""
    return [name for name in ("pruned", "teacher") if (onnx / f"{name}.onnx").is_file()]


if __name__ == "__main__":
    run(main)
