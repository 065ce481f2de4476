"""ExecuTorch with XNNPACK: phones and Arm boards. INT8 by torchao's PT2E and XNNPACK's quantizer.

On x86 the same program runs on the same backend, with the kernels for x86.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import onnx_to_torch, xnnpack
from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import Operator

PACKAGES = ("executorch", "onnx2torch", "torchao")
TOOLS: tuple[Path, ...] = ()
INSTEAD = None
PRECISIONS = ("fp32", "int8")
FILES = ("model.pte",)
OBSERVERS = {
    "histogram": "HistogramObserver",
    "minmax": "MinMaxObserver",
    "moving_average": "MovingAverageMinMaxObserver",
}


class Options(Section):
    """How XNNPACK's quantizer quantizes: INT8 activations with a zero point, symmetric INT8 weights."""

    ranges: Literal["histogram", "minmax", "moving_average"] = Field(description="Of activations over the images.")
    per_channel: bool = Field(description="A scale for each output channel of the weights.")


def candidates(options: Options, search: str) -> list[Options]:
    """Return the schemes to try, the declared one first."""
    found = [options, *(options.model_copy(update={"ranges": r}) for r in ("histogram", "minmax"))]
    if search == "thorough":
        found.append(options.model_copy(update={"ranges": "moving_average"}))
        found += [one.model_copy(update={"per_channel": not one.per_channel}) for one in found[:2]]
    return list(dict.fromkeys(found))


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.pte` of an FP32 ONNX model, for one image; what XNNPACK does not take runs in portable kernels."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    out.mkdir(parents=True, exist_ok=True)
    graph, image, _ = onnx_to_torch.read(source)
    done: dict[str, Any] = {"quantizer": "none"}
    texts: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if precision == "int8":
            assert calibration is not None and options is not None
            graph, names = _quantized(graph, image, calibration, options, keep)
            texts = {"quantmill_calibration": calibration.digest, "quantmill_quantized": "\n".join(names)}
            done = {"quantizer": "torchao", **options.model_dump()}
        program = to_edge_transform_and_lower(
            torch.export.export(graph, (image,)), partitioner=[XnnpackPartitioner()], constant_methods=texts
        ).to_executorch()
    (out / FILES[0]).write_bytes(program.buffer)
    return done


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators of an INT8 artifact that take quantized inputs, in the order of the graph."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(artifact)
    if "quantmill_quantized" not in program.method_names:
        return []
    (names,) = program.load_method("quantmill_quantized").execute([])
    return str(names).splitlines()


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open the program with `threads` threads, which all programs of a process share; images go in one by one."""
    import numpy
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(str(artifact)).load_method("forward")

    def predict(batch):  # type: ignore[no-untyped-def]
        images = torch.from_numpy(numpy.ascontiguousarray(batch))
        answers = [method.execute([images[n : n + 1]]) for n in range(len(images))]
        return [numpy.concatenate([one.numpy() for one in output]) for output in zip(*answers, strict=True)]

    return predict


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return the operators of the program: those given to XNNPACK, by the types of their values, and the rest."""
    return xnnpack.operators(artifact.read_bytes())


def _quantized(
    graph: Any, image: Any, calibration: Calibration, options: Options, keep: Sequence[str]
) -> tuple[Any, list[str]]:
    """Return the graph with quantized operators, and their names in ONNX."""
    import torch
    import torchao.quantization.pt2e as pt2e
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e import quantize_pt2e

    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=options.per_channel)
    observer = getattr(pt2e, OBSERVERS[options.ranges]).with_args(eps=2**-12)
    spec = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=observer)
    config = dataclasses.replace(config, input_activation=spec, output_activation=spec)
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
    # Batch normalization is in the convolutions already; to look for it takes longer than all the rest.
    patterns = [p for p in quantizer.SUPPORTED_PATTERNS if "_bn" not in p.name]
    # Its annotator of concatenations asks no filter: where one is kept in float, all are.
    joins = [node for node in graph.graph.nodes if node.target is torch.ops.aten.cat.default]
    if any(node.meta.get("onnx") in keep for node in joins):
        patterns = [p for p in patterns if p.name != "cat"]
    quantizer.SUPPORTED_PATTERNS = patterns
    quantizer.set_filter_function(lambda node: node.meta.get("onnx") not in keep)
    prepared = quantize_pt2e.prepare_pt2e(graph, quantizer)
    names = [
        str(node.meta["onnx"])
        for node in prepared.graph.nodes
        if "onnx" in node.meta and getattr(node.meta.get("quantization_annotation"), "input_qspec_map", None)
    ]
    with torch.no_grad():
        for batch in calibration.inputs():
            prepared(torch.from_numpy(batch))
    return quantize_pt2e.convert_pt2e(prepared), list(dict.fromkeys(names))
