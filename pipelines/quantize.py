"""Makes one target's artifact from the FP32 ONNX model and the frozen calibration subset."""

from pathlib import Path

from pipelines import targets
from pipelines.calibration import Calibration
from pipelines.files import sha256_file, write_folder, write_json
from pipelines.stage import run


def main(name: str, data: Path, onnx: Path, calibration: Path, out: Path) -> None:
    """Write `out`: the artifact of target `name` in its runtime's form, and `quantize.json`, how it was made."""
    target, runtime, options = targets.read(name)
    frozen = Calibration(data, calibration) if target.precision == "int8" else None
    with write_folder(out) as folder:
        done = runtime.quantize(onnx / "pruned.onnx", frozen, target.precision, options, folder)
        write_json(
            folder / "quantize.json",
            {
                "runtime": target.runtime,
                "precision": target.precision,
                "scheme": done,
                "source": sha256_file(onnx / "pruned.onnx"),
                "calibration": frozen.digest if frozen else None,
            },
        )


if __name__ == "__main__":
    run(main)
