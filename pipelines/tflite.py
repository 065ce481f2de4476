"""Converts FP32 ONNX to FP32 TFLite, through torch, in a Python environment of its own.

LiteRT's converter needs packages that clash with those of the line: they are installed into `litert` inside this
environment's folder, by the same set-up command. As a program this file runs there, and imports nothing of ours.
"""

import os
import subprocess
import sys
from pathlib import Path

STORE = Path(".quantmill/tflite")  # by content: a search and every validation need the same conversion again


def python(prefix: Path = Path(sys.prefix)) -> Path:
    """Return the interpreter of the converter's environment."""
    return prefix / "litert" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def convert(source: Path) -> Path:
    """Return the TFLite file of an ONNX model; it takes one image as N x H x W x C.

    Raises StageError when the converter is not installed or cannot convert the model.
    """
    from pipelines.files import sha256_file, write_file
    from pipelines.stage import StageError

    target = STORE / f"{sha256_file(source)}.tflite"
    if target.is_file():
        return target
    if not python().is_file():
        raise StageError(f"LiteRT's converter is not installed: there is no {python()}; run `make targets`")
    with write_file(target) as part:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [str(word) for word in (python(), __file__, source, part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise StageError(f"{source}: LiteRT's converter fails: {said}")
    return target


def _convert(source: str, target: str) -> None:
    import litert_torch
    import onnx
    import onnx2torch
    import torch

    proto = onnx.load(source)
    weights = {i.name: i for i in proto.graph.initializer}
    for node in [n for n in proto.graph.node if n.op_type == "Identity" and n.input[0] in weights]:
        # The exporter shares equal weights; onnx2torch takes them as initializers alone.
        proto.graph.initializer.append(weights[node.input[0]])
        proto.graph.initializer[-1].name = node.output[0]
        proto.graph.node.remove(node)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    model = litert_torch.to_channel_last_io(onnx2torch.convert(proto).eval(), args=[0])
    litert_torch.convert(model, (torch.zeros(1, *shape[1:], shape[0]),)).export(target)


if __name__ == "__main__":
    _convert(*sys.argv[1:])
