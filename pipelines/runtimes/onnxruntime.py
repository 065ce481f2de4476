"""ONNX Runtime: x86 and Arm CPUs. INT8 as QDQ by its own quantizer, with ranges from our calibration table."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import Calibration
from pipelines.params import Section

PACKAGES = ("onnxruntime",)
PRECISIONS = ("fp32", "int8")
FILES = ("model.onnx",)


class Options(Section):
    """How ONNX Runtime quantizes: unsigned activations, signed weights."""

    ranges: Literal["minmax", "percentile", "entropy", "mse"]
    per_channel: bool


def quantize(
    source: Path, calibration: Calibration | None, precision: str, options: Options | None, out: Path
) -> dict[str, Any]:
    """Write `model.onnx` of an FP32 ONNX model in `precision`."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / FILES[0]
    if precision == "fp32":
        shutil.copyfile(source, target)
        return {"quantizer": "none"}
    assert calibration is not None and options is not None
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared, ranges = Path(folder) / "prepared.onnx", Path(folder) / "ranges.json"
        quant_pre_process(source, prepared)
        method = quantization.CalibrationMethod.MinMax  # what the table holds are ranges, whoever chose them
        found = {name: row[options.ranges] for name, row in calibration.activations.items()}
        table = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in found.items()
        }
        save_tensors_data(TensorsData(method, table), ranges)
        quantization.quantize_static(
            prepared,
            target,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,  # s8 activations are slow on x86
            weight_type=quantization.QuantType.QInt8,
            per_channel=options.per_channel,
            calibrate_method=method,
            calibration_cache_path=ranges,
        )
    proto = onnx.load(target)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {"quantmill_calibration": calibration.digest})
    target.write_bytes(proto.SerializeToString(deterministic=True))
    return {"quantizer": "onnxruntime", **options.model_dump()}


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open a CPU session of the artifact with `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})
