"""Core ML: Apple's processors. FP16, and INT8 weights that are multiplied in FP16.

coremltools converts on any system, and runs on macOS alone: elsewhere torch computes what the package says, operator by
operator and rounded to FP16 as Core ML may do, and nothing is timed.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import mil, onnx_to_torch
from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import Operator
from pipelines.stage import StageError

PACKAGES = ("coremltools", "onnx2torch")
TOOLS: tuple[Path, ...] = ()
INSTEAD = "torch"
PRECISIONS = ("fp16", "int8")
PACKAGE = "model.mlpackage"
_DATA = f"{PACKAGE}/Data/com.apple.CoreML"
FILES = (f"{PACKAGE}/Manifest.json", f"{_DATA}/model.mlmodel", f"{_DATA}/weights/weight.bin")


class Options(Section):
    """How coremltools quantizes: INT8 weights per output channel. Activations stay in FP16."""

    weights: Literal["symmetric", "asymmetric"] = Field(description="asymmetric has a zero point per channel.")


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.mlpackage`, an ML program for iOS 16 and macOS 13 on, for one image. It takes and gives float32."""
    import torch

    graph, image, outputs = onnx_to_torch.read(source)
    tools = mil.coremltools()
    done: dict[str, Any] = {"quantizer": "none"}
    with mil.silence():
        exported = torch.export.export(graph, (image,)).run_decompositions({})
        try:
            model = tools.convert(
                exported,
                inputs=[tools.TensorType(name="images", shape=tuple(image.shape), dtype=np.float32)],
                outputs=[tools.TensorType(name=name, dtype=np.float32) for name in outputs],
                minimum_deployment_target=tools.target.iOS16,
                compute_precision=tools.precision.FLOAT16,
            )
        except (NotImplementedError, ValueError) as error:
            raise StageError(f"{source}: coremltools cannot convert it: {str(error).splitlines()[0]}") from error
        if precision == "int8":
            assert calibration is not None and options is not None
            optimize = tools.optimize.coreml
            mode = "linear_symmetric" if options.weights == "symmetric" else "linear"
            scheme = optimize.OpLinearQuantizerConfig(mode=mode, weight_threshold=0)
            config = optimize.OptimizationConfig(scheme, op_name_configs=dict.fromkeys(keep))
            model = optimize.linear_quantize_weights(model, config)
            model.user_defined_metadata["quantmill_calibration"] = calibration.digest
            done = {"quantizer": "coremltools", **options.model_dump()}
        model.save(str(out / PACKAGE))
    _settle(out / PACKAGE)
    return done


def quantized(artifact: Path) -> list[str]:
    """Return the names of the weights of an INT8 artifact that are INT8, in the order of the program."""
    suffix = "_quantized"
    return [o.name.removesuffix(suffix) for o in mil.program(artifact.parent) if o.op_type.startswith("constexpr")]


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open the package with Core ML on macOS, which sees to the threads; elsewhere torch stands in for it."""
    import sys

    import numpy

    if sys.platform != "darwin":
        try:
            from pipelines import mil
        except ImportError:
            raise OSError("Core ML runs on macOS alone") from None
        return mil.load(artifact.parent, threads)
    import coremltools

    model = coremltools.models.MLModel(str(artifact.parent))
    exits = [output.name for output in model.get_spec().description.output]

    def predict(batch):  # type: ignore[no-untyped-def]
        answers = [model.predict({"images": batch[n : n + 1]}) for n in range(len(batch))]
        return [numpy.concatenate([answer[name] for answer in answers]) for name in exits]

    return predict


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return nothing: what Core ML executes, and where, is known on the device."""
    return []


def _settle(package: Path) -> None:
    """Give a package the same bytes each time: its items random names, its maps another order."""
    from coremltools.proto import Model_pb2

    for path in package.iterdir():
        if path.name not in ("Manifest.json", "Data"):
            path.unlink()  # of ExecuTorch's debugger
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    entries = manifest["itemInfoEntries"]
    names = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for old, item in entries.items()}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in entries.items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    file = package.parent / FILES[1]
    spec = Model_pb2.Model.FromString(file.read_bytes())
    file.write_bytes(spec.SerializeToString(deterministic=True))
    shutil.copymode(package / "Manifest.json", file)
