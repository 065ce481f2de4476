"""TensorRT: NVIDIA GPUs. Explicit QDQ, held against TensorRT's rules; the engine is built where it will run.

An engine suits one GPU and one version of TensorRT, so that the artifact is ONNX with the command that builds it. Its
answers are checked on ONNX Runtime, and nothing is timed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import qdq
from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import OPENVINO, Operator
from pipelines.stage import StageError

PACKAGES = ("onnxruntime",)
TOOLS: tuple[Path, ...] = ()
INSTEAD = "ONNX Runtime"
ELSEWHERE = OPENVINO
PRECISIONS = ("fp32", "fp16", "int8")
FILES = ("model.onnx", "build-engine.sh")
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BATCH = 32  # the most images at once that the engine is built for, unless BATCH says otherwise


class Options(Section):
    """How activations are quantized for TensorRT; it wants symmetric INT8 and per-channel weights."""

    ranges: Literal["minmax", "percentile", "entropy", "mse"]


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.onnx` and `build-engine.sh`. Raises StageError when the QDQ model breaks a rule of TensorRT's."""
    import onnx

    out.mkdir(parents=True, exist_ok=True)
    target = out / FILES[0]
    done: dict[str, Any] = {"quantizer": "none"}
    if precision == "fp32":
        shutil.copyfile(source, target)
    elif precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
        target.write_bytes(proto.SerializeToString(deterministic=True))
    else:
        assert calibration is not None and options is not None
        from onnxruntime.quantization import QuantType

        qdq.quantize(
            source,
            target,
            calibration,
            options.ranges,
            op_types_to_quantize=list(LINEAR),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(keep),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                # Behind an operator TensorRT fuses what follows; a pair there would come in between.
                "OpTypesToExcludeOutputQuantization": list(LINEAR),
            },
        )
        if broken := list(rules(target)):
            raise StageError(f"{target.name}: TensorRT would refuse it: {'; '.join(broken)}")
        done = {"quantizer": "onnxruntime", **options.model_dump()}
    entry = onnx.load(source).graph.input[0]
    shape = "x".join(str(d.dim_value) for d in entry.type.tensor_type.shape.dim[1:])
    (out / FILES[1]).write_text(_command(entry.name, shape), encoding="utf-8")
    return done


def rules(model: Path) -> Iterator[str]:
    """Yield each rule of TensorRT's explicit quantization that a QDQ model breaks, in a sentence.

    Source: NVIDIA TensorRT Developer Guide, Working with Quantized Types: constant positive scales, INT8, zero point
    0, per-tensor activations, per-channel weights along the output channels, biases not quantized.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    graph = onnx.load(model).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    kinds = {i.name: i.data_type for i in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants.get(node.input[1])
        point = constants.get(node.input[2]) if len(node.input) > 2 else None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if scale is None or not (scale > 0).all():
            yield f"{node.name}: the scale is not constant and positive"
            continue
        if point is None or point.dtype != np.int8 or point.any():
            yield f"{node.name}: the zero point is not an INT8 zero"
        if kinds.get(node.input[0]) == TensorProto.INT32:
            yield f"{node.name}: a bias is quantized"
        readers = [n for n in graph.node if node.output[0] in n.input]
        weights = node.input[0] in constants
        if not weights and scale.size > 1:
            yield f"{node.name}: activations have a scale per channel"
        # Output channels: of a convolution axis 0, of a transposed one 1, of a matrix product the last.
        wanted = {axis for n in readers for axis in _axes(n, constants.get(node.input[0]))}
        if weights and scale.size > 1 and wanted and axis not in wanted:
            yield f"{node.name}: weights have a scale along axis {axis}, not {sorted(wanted)[0]}"


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators of an INT8 artifact that take quantized inputs, in the order of the graph."""
    return qdq.quantized(artifact)


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open a CPU session of ONNX Runtime, which computes what the engine will, in other kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return nothing: what TensorRT executes is known when it has built the engine."""
    return []


def _axes(reader: Any, weights: NDArray[Any] | None) -> tuple[int, ...]:
    if reader.op_type == "Conv":
        return (0,)
    if reader.op_type == "ConvTranspose":
        return (1,)
    if reader.op_type == "Gemm" and any(a.name == "transB" and a.i for a in reader.attribute):
        return (0,)
    return (-1, 1 if weights is None else weights.ndim - 1) if reader.op_type in ("Gemm", "MatMul") else ()


def _command(name: str, shape: str) -> str:
    return f"""#!/bin/sh
# Builds the engine on the machine that will run it: an engine suits one GPU and one version of TensorRT.
cd "$(dirname "$0")" || exit 1
exec trtexec --onnx={FILES[0]} --stronglyTyped --saveEngine=model.engine \\
  --minShapes={name}:1x{shape} --optShapes={name}:1x{shape} --maxShapes={name}:${{BATCH:-{BATCH}}}x{shape}
"""
