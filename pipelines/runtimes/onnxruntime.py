"""ONNX Runtime: x86 and Arm CPUs. INT8 as QDQ by its own quantizer, with ranges from our calibration table."""

import itertools
import shutil
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
from pipelines.runtimes import OPENVINO, Operator

PACKAGES = ("onnxruntime",)
TOOLS: tuple[Path, ...] = ()
INSTEAD = None
ELSEWHERE = OPENVINO
PRECISIONS = ("fp32", "fp16", "int8")
FILES = ("model.onnx",)
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip")  # without the last two, fusion with them is lost


class Options(Section):
    """How ONNX Runtime quantizes: signed weights, and of activations, ranges, signedness and operators."""

    ranges: Literal["minmax", "percentile", "entropy", "mse"]
    per_channel: bool
    activations: Literal["u8", "s8"] = Field(description="s8 is symmetric: slow on x86, fast on Arm.")
    operators: Literal["all", "linear"] = Field(description="Everything, or convolutions and matrix products alone.")
    reduce_range: bool = Field(description="7-bit weights, for a CPU without VNNI, which saturates.")


def candidates(options: Options, search: str) -> list[Options]:
    """Return the schemes to try, the declared one first: one thing changed at a time, or (thorough) all together."""
    # Per-tensor weights and s8 activations win nothing here; who needs them declares them.
    ranges: tuple[Any, ...] = ("minmax", "percentile", "mse", "entropy")
    found = [options]
    if search == "fast":
        found += [options.model_copy(update={"ranges": r}) for r in ranges]
        found += [options.model_copy(update={"operators": o}) for o in ("all", "linear")]
    else:
        for operators, reduce_range, each in itertools.product(("all", "linear"), (False, True), ranges):
            change = {"operators": operators, "reduce_range": reduce_range, "ranges": each, "per_channel": True}
            found.append(options.model_copy(update=change))
    return list(dict.fromkeys(found))


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.onnx` of an FP32 ONNX model in `precision`."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / FILES[0]
    if precision == "fp32":
        shutil.copyfile(source, target)
        return {"quantizer": "none"}
    if precision == "fp16":
        _halve(source, target)
        return {"quantizer": "none"}
    assert calibration is not None and options is not None
    from onnxruntime.quantization import QuantType

    qdq.quantize(
        source,
        target,
        calibration,
        options.ranges,
        op_types_to_quantize=list(LINEAR) if options.operators == "linear" else None,
        activation_type=QuantType.QUInt8 if options.activations == "u8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
        nodes_to_exclude=list(keep),
        extra_options={"ActivationSymmetric": options.activations == "s8"},
    )
    return {"quantizer": "onnxruntime", **options.model_dump()}


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators of an INT8 artifact that take quantized inputs, in the order of the graph."""
    return qdq.quantized(artifact)


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


def _halve(source: Path, target: Path) -> None:
    """Store the weights in FP16 and compute in FP32, which is what a CPU is fast in: each is widened once, at load."""
    import onnx

    proto = onnx.load(source)
    widen = []
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name = tensor.name
            # Past the largest finite FP16 a weight would become infinite.
            values = np.clip(onnx.numpy_helper.to_array(tensor), -65504, 65504).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}:fp16"))
            widen.append(
                onnx.helper.make_node("Cast", [f"{name}:fp16"], [name], f"{name}:cast", to=onnx.TensorProto.FLOAT)
            )
    nodes = [*widen, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    target.write_bytes(proto.SerializeToString(deterministic=True))
