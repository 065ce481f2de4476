"""Converts FP32 ONNX to FP32 TFLite, through torch, in a Python environment of its own.

LiteRT's converter needs packages that clash with those of the line: they are installed into `litert` inside this
environment's folder, by the same set-up command. As a program this module runs there.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines import onnx_to_torch
from pipelines.files import sha256_bytes, write_file
from pipelines.stage import StageError

STORE = Path(".quantmill/tflite")  # by content: a search and every validation need the same again


def python(prefix: Path = Path(sys.prefix)) -> Path:
    """Return the interpreter of the converter's environment."""
    return prefix / "litert" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def convert(source: Path) -> Path:
    """Return the TFLite file of an ONNX model; it takes one image as N x H x W x C.

    Raises StageError when the converter is not installed or cannot convert the model.
    """
    code = [Path(str(file)).read_bytes() for file in (__file__, onnx_to_torch.__file__)]
    target = STORE / f"{sha256_bytes(b''.join([source.read_bytes(), *code]))}.tflite"
    if target.is_file():
        return target
    if not python().is_file():
        raise StageError(f"LiteRT's converter is not installed: there is no {python()}; run `make targets`")
    with write_file(target) as part:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [str(word) for word in (python(), "-P", "-m", __name__, source, part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise StageError(f"{source}: LiteRT's converter fails: {said}")
    return target


def _convert(source: Path, target: str) -> None:
    import litert_torch
    import torch
    from torch.fx.passes.split_module import split_module

    graph, image, _ = onnx_to_torch.read(source)

    class Node(torch.nn.Module):  # type: ignore[misc]
        """A node of ONNX as a module of its own: the converter names operators after their modules."""

        def __init__(self, body: Any) -> None:
            super().__init__()
            self.body = body

        def forward(self, *inputs: Any) -> Any:
            return self.body(*inputs)

    named = split_module(graph, graph, lambda node: node.meta.get("onnx", "constants"))
    for name, part in list(named.named_children()):
        setattr(named, name, Node(part))
    _, *shape = image.shape
    model = litert_torch.to_channel_last_io(named, args=[0])
    litert_torch.convert(model, (torch.zeros(1, *shape[1:], shape[0]),)).export(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), sys.argv[2])
