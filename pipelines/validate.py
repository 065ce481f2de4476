"""Measures one target's artifact on its real runtime, beside FP32 in the same runtime. It judges nothing."""

import tempfile
from pathlib import Path

import numpy as np

from pipelines import evaluation, measure, targets
from pipelines.calibration import Calibration
from pipelines.files import read_json, sha256_file, size_of, write_json
from pipelines.stage import StageError, run


def main(
    name: str, data: Path, onnx: Path, baseline: Path, calibration: Path, artifact: Path, out: Path, outputs: Path
) -> None:
    """Write `out`, the metrics of target `name` (JSON), and `outputs`, what its artifact said of the test split (.npz).

    The candidate takes turns in one process with its FP32 twin, the same pruned model, and then with the teacher.
    Raises StageError when an INT8 artifact was not calibrated on the images of `calibration`.
    """
    target, runtime, _ = targets.read(name)
    test = evaluation.read(data, onnx)
    file = artifact / runtime.FILES[0]
    made = read_json(artifact / "quantize.json")
    precision = made["precision"]
    frozen = Calibration(data, calibration)
    if precision == "int8" and not any(frozen.digest.encode() in (artifact / f).read_bytes() for f in runtime.FILES):
        raise StageError(f"{artifact}: was calibrated on other images; run: dvc repro quantize@{name}")
    found = test.outputs(runtime.load(file, test.measure.threads))
    twins = [n for n in ("pruned", "teacher") if (onnx / f"{n}.onnx").is_file()]  # a given model has no teacher
    fp32 = {twin: evaluation.read_outputs(baseline / f"{twin}.npz") for twin in twins}
    options = test.measure.model_dump()
    with tempfile.TemporaryDirectory() as folder:
        pairs = {}
        for twin in twins:
            runtime.quantize(onnx / f"{twin}.onnx", None, "fp32", None, Path(folder) / twin)
            files = {"candidate": file, "twin": Path(folder) / twin / runtime.FILES[0]}
            pairs[twin] = measure.interleaved(target.runtime, files, test.shape, options)["times_ms"]
    operators = runtime.operators(file, test.shape)
    size = sum(size_of(artifact / name) for name in runtime.FILES)
    faster = {twin: float(np.median(times["twin"]) / np.median(times["candidate"])) for twin, times in pairs.items()}
    evaluation.write_outputs(outputs, found)
    write_json(
        out,
        {
            **test.score(found),
            **test.drop("teacher", fp32.get("teacher"), found),
            **test.drop("fp32", fp32["pruned"], found),
            **evaluation.latency(pairs["pruned"]["candidate"]),
            **measure.alone(target.runtime, file, test.shape, options),
            **test.worst_slice(fp32["pruned"], found),
            "precision": precision,
            "chosen": made.get("chosen"),
            "kept_operators": len(made["kept"]),
            "int8_share": evaluation.int8_share(operators),
            "int8_operators": sum(o.precision == "int8" for o in operators),
            "operators": len(operators),
            "calibration_overlap": frozen.overlap() if precision == "int8" else None,
            "agreement": test.task.agreement(fp32["pruned"], found),
            "size_bytes": size,
            "compression": size_of(onnx / f"{twins[-1]}.onnx") / size,
            "fp32_p50_ms": float(np.median(pairs["pruned"]["twin"])),
            "speedup": faster["pruned"],
            "speedup_teacher": faster.get("teacher"),
            "sha256": {name: sha256_file(artifact / name) for name in runtime.FILES},
        },
    )


if __name__ == "__main__":
    run(main)
