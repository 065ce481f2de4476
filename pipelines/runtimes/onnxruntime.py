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
from pipelines.runtimes import Operator

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


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return what a CPU session executes for one image, from its profile and its optimized graph.

    Layout optimizations, which pad channels and change no precision, are left out.
    """
    import json
    import math

    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        options.log_severity_level = 3  # it warns that an optimized file suits this machine only
        session = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: np.zeros((1, *shape), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = onnx.load(options.optimized_model_filepath).graph
    sizes = {i.name: list(i.dims) for i in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    found = []
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") != "Node" or name == event["name"] or name not in nodes:
            continue
        kind = nodes[name].op_type
        if not any(word in kind for word in ("Conv", "Gemm", "MatMul")):
            continue
        (output,) = event["args"]["output_type_shape"][0].values()
        weights = next((sizes[i] for i in nodes[name].input[1:] if len(sizes.get(i, [])) > 1), None)
        channels = output[1] if "Conv" in kind else output[-1]
        (first,) = event["args"]["input_type_shape"][0].values()
        each = math.prod(weights) // channels if weights else first[-1]
        # A float kernel takes float: what was quantized but not fused runs in float behind a DequantizeLinear.
        precision = "int8" if "float" not in event["args"]["input_type_shape"][0] else "float"
        precision = "int8" if "Integer" in kind or "Dynamic" in kind else precision
        found.append(Operator(name, kind, precision, math.prod(output) * each))
    return found
