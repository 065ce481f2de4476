"""A torch model as FP32 ONNX, the form from which every target is made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.files import write_file
from pipelines.models.onnx import INPUT, OPSET, OUTPUT
from pipelines.stage import StageError

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 1e-4  # of the largest output


def export(model: "nn.Module", shape: tuple[int, int, int], path: Path) -> None:
    """Write a model that takes images of `shape`, C x H x W, as ONNX with a dynamic batch, and check it.

    A model with more than one output names them in `outputs`.
    """
    import warnings

    import onnx
    import torch

    outputs = getattr(model, "outputs", (OUTPUT,))
    axes = {name: {0: "N"} for name in (INPUT, *outputs)}
    with write_file(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, *shape),),
            str(part),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_axes=axes,
            dynamo=False,  # deprecated, but the newer exporter writes source paths into the file
        )
        proto = onnx.load(part)
        del proto.metadata_props[:]
        for node in proto.graph.node:
            node.doc_string = ""
        part.write_bytes(proto.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(part), full_check=True)
        compare(model, part, shape)


def compare(model: "nn.Module", path: Path, shape: tuple[int, int, int]) -> None:
    """Raise StageError when ONNX Runtime and torch differ by more than TOLERANCE, on batches of one and of three."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for count in (1, 3):
        images: Any = generator.standard_normal((count, *shape)).astype(np.float32)
        with torch.inference_mode():
            given = model(torch.from_numpy(images))
        several = given if isinstance(given, tuple) else (given,)
        for found, tensor in zip(session.run(None, {INPUT: images}), several, strict=True):
            wanted = tensor.numpy()
            if found.shape != wanted.shape:
                raise StageError(
                    f"{path.name}: ONNX gives shape {found.shape}, torch {wanted.shape}; the batch is not dynamic"
                )
            difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            if not difference <= TOLERANCE:
                raise StageError(f"{path.name}: ONNX differs from torch by {difference:.1e} of the largest output")
