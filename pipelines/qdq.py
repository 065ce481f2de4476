"""INT8 in ONNX as QuantizeLinear and DequantizeLinear pairs, by ONNX Runtime's quantizer and our calibration table."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.calibration import Calibration


def quantize(source: Path, target: Path, calibration: Calibration, ranges: str, **how: Any) -> None:
    """Write `target`, an FP32 ONNX model with QDQ pairs, and the digest of the calibration in its properties.

    `ranges` is a method of the calibration table; `how` goes to ONNX Runtime's
    `quantize_static`; its own collectors, whose memory grows with the images, are not used.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared, cache = Path(folder) / "prepared.onnx", Path(folder) / "ranges.json"
        # Merged: to shape inference the batch of a Resize, floor(N * 1.0), is another dimension than N.
        quant_pre_process(source, prepared, auto_merge=True)
        unknown = _name_nodes(prepared, set(calibration.activations))
        method = quantization.CalibrationMethod.MinMax  # what the table holds are ranges, whoever chose them
        found = {name: row[ranges] for name, row in calibration.activations.items()}
        table = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in found.items()
        }
        save_tensors_data(TensorsData(method, table), cache)
        quantization.quantize_static(
            prepared,
            target,
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=method,
            calibration_cache_path=cache,
            **{**how, "nodes_to_exclude": [*how.get("nodes_to_exclude", ()), *unknown]},
        )
    proto = onnx.load(target)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {"quantmill_calibration": calibration.digest})
    target.write_bytes(proto.SerializeToString(deterministic=True))


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators that take quantized inputs, in the order of the graph."""
    import onnx

    graph = onnx.load(artifact).graph
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    # Weights are dequantized too: an operator is quantized when its first input is.
    return [n.name for n in graph.node if n.op_type != "QuantizeLinear" and n.input and n.input[0] in made]


def _name_nodes(path: Path, known: set[str]) -> list[str]:
    """Name nameless nodes after what they give, so that they can be kept from INT8, and return whom to keep.

    ONNX Runtime's preparation takes functions such as HardSwish apart: what computes tensors that the calibration never
    saw has no ranges, and stays in float.
    """
    import onnx

    proto = onnx.load(path)
    seen = known | {i.name for i in proto.graph.initializer}
    made = {name for node in proto.graph.node if node.op_type != "Constant" for name in node.output}
    unknown = []
    for node in proto.graph.node:
        node.name = node.name or f"{node.output[0]}:{node.op_type}"
        if any(name in made and name not in seen for name in [*node.input, *node.output]):
            unknown.append(node.name)
    onnx.save(proto, path)
    return unknown
