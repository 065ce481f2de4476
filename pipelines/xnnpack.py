"""Reads from an ExecuTorch program what XNNPACK will compute, and in which precision."""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.runtimes import Operator

KINDS = {
    "XNNConv2d": "Conv",
    "XNNDepthwiseConv2d": "Conv",
    "XNNConvTranspose2d": "ConvTranspose",
    "XNNFullyConnected": "Gemm",
    "XNNBatchMatrixMultiply": "MatMul",
}
QUANTIZED = ("xnn_datatype_qint8", "xnn_datatype_quint8", "xnn_datatype_qdint8")
# Kernels outside XNNPACK, with the places of two factors among their arguments.
PORTABLE = {
    "aten::addmm": ("Gemm", 1, 2),
    "aten::bmm": ("MatMul", 0, 1),
    "aten::convolution": ("Conv", 0, 1),
    "aten::linear": ("Gemm", 0, 1),
    "aten::mm": ("MatMul", 0, 1),
}


def operators(program: bytes) -> list[Operator]:
    """Return each convolution and matrix product of a program: XNNPACK's in the precision of its input."""
    from executorch.exir._serialize import _program

    header = _program._get_extended_header(program)
    parsed = _program._flatbuffer_to_program(program[: header.program_size] if header else program)
    plan = next(plan for plan in parsed.execution_plan if plan.name == "forward")
    found: list[Operator] = []
    for index in range(len(plan.delegates)):
        blob = _program._extract_delegate_payload(program, "XnnpackBackend", index)
        if blob is not None:
            found += _delegated(bytes(blob), index)
    return [*found, *_portable(plan)]


def _delegated(blob: bytes, index: int) -> Iterator[Operator]:
    graph = _graph(blob)
    values = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        values[tensor["id_out"]] = tensor
    for node in graph["xnodes"]:
        kind, union = KINDS.get(node["xnode_union_type"]), node["xnode_union"]
        if kind is None:
            continue
        entry, output = values[union.get("input1_id", union.get("input_id"))], values[union["output_id"]]
        if "kernel_height" in union:
            window = union["kernel_height"] * union["kernel_width"]
            if kind == "Conv":
                total = math.prod(output["dims"]) * window * union["group_input_channels"]
            else:
                total = math.prod(entry["dims"]) * window * union["group_output_channels"]
        else:
            total = math.prod(output["dims"]) * entry["dims"][-1]
        precision = "int8" if entry["datatype"] in QUANTIZED else "float"
        yield Operator(f"xnnpack {index}, value {union['output_id']}", kind, precision, total)


def _graph(blob: bytes) -> dict[str, Any]:
    """Return the graph in the data of a delegate, as ExecuTorch's own schema reads it."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as serialize
    from executorch.exir._serialize import _flatbuffer

    header = serialize.XNNHeader.from_bytes(blob[: serialize.XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schema.fbs").write_bytes(serialize._get_schema_bytes())
        (folder / "graph.bin").write_bytes(blob[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatbuffer._flatc_decompile(name, f"{name}/schema.fbs", f"{name}/graph.bin", ["--raw-binary"])
        text = (folder / "graph.json").read_text(encoding="utf-8")
    # flatc writes infinite bounds of activations as words that are not JSON.
    graph: dict[str, Any] = json.loads(re.sub(r"(?<=: )-?(?:inf|nan)\b", "null", text))
    return graph


def _portable(plan: Any) -> Iterator[Operator]:
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions if hasattr(i.instr_args, "op_index")]
    for number, call in enumerate(calls):
        name = plan.operators[call.op_index].name
        if name in PORTABLE:
            kind, one, other = PORTABLE[name]
            left, right, output = (plan.values[call.args[place]].val.sizes for place in (one, other, -1))
            each = math.prod(right[1:]) if kind == "Conv" or name == "aten::linear" else left[-1]
            yield Operator(f"{name} {number}", kind, "float", math.prod(output) * each)
