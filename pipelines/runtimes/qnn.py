"""Qualcomm NPUs (Hexagon HTP) through ONNX Runtime's QNN provider. INT8 as QDQ, with 8 or 16 bits of activations.

On x86 the same HTP library prepares and computes the graph, without a fallback to the CPU: what the NPU would refuse is
refused here. How fast the NPU is cannot be known here, so that nothing is timed.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import qdq
from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import OPENVINO, Elsewhere, Operator

PACKAGES = ("onnxruntime", "onnxruntime_qnn")
TOOLS: tuple[Path, ...] = ()
INSTEAD = "Qualcomm's HTP library on this machine's processor"
ELSEWHERE = (Elsewhere("ONNX Runtime", "onnxruntime"), *OPENVINO)
PRECISIONS = ("int8",)
FILES = ("model.onnx",)


class Options(Section):
    """How ONNX Runtime quantizes for the NPU: unsigned activations, signed weights per channel."""

    ranges: Literal["minmax", "percentile", "entropy", "mse"]
    activations: Literal["u8", "u16"] = Field(description="u16 with INT8 weights is W8A16: slower, and far more exact.")


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.onnx`, for one image: the NPU takes fixed shapes. `keep` names what stays in float."""
    import onnx
    from onnxruntime.quantization import QuantType

    assert calibration is not None and options is not None
    out.mkdir(parents=True, exist_ok=True)
    proto = onnx.load(source)
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    with tempfile.TemporaryDirectory() as folder:
        fixed = Path(folder) / "fixed.onnx"
        onnx.save(proto, fixed)
        qdq.quantize(
            fixed,
            out / FILES[0],
            calibration,
            options.ranges,
            activation_type=QuantType.QUInt8 if options.activations == "u8" else QuantType.QUInt16,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(keep),
            extra_options={"MinimumRealRange": 1e-4},  # QNN refuses a scale of next to nothing
        )
    return {"quantizer": "onnxruntime", **options.model_dump()}


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators of an INT8 artifact that take quantized inputs, in the order of the graph."""
    return qdq.quantized(artifact)


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open a session on the HTP alone; it fails when the HTP cannot take an operator. `threads` is not its business."""
    import numpy
    import onnxruntime
    import onnxruntime_qnn

    name = onnxruntime_qnn.get_ep_name()
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    session = onnxruntime.InferenceSession(str(artifact), options)
    entry = session.get_inputs()[0].name

    def predict(batch):  # type: ignore[no-untyped-def]
        parts = [session.run(None, {entry: batch[n : n + 1]}) for n in range(len(batch))]
        return [numpy.concatenate(output) for output in zip(*parts, strict=True)]

    return predict


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return nothing: what the NPU executes is known on the NPU."""
    return []
