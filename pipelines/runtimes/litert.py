"""LiteRT with XNNPACK: phones and Arm boards. INT8 by the AI Edge Quantizer."""

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import tflite
from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import Elsewhere, Operator

PACKAGES = ("ai_edge_litert", "ai_edge_quantizer")
TOOLS = (tflite.python(),)
INSTEAD = None
ELSEWHERE = (Elsewhere("LiteRT without XNNPACK", "litert", load="load_plain"),)
PRECISIONS = ("fp32", "fp16", "int8")
FILES = ("model.tflite",)
KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV")


class Options(Section):
    """How the AI Edge Quantizer quantizes: weights are INT8 per channel, symmetric."""

    activations: Literal["int8", "int16", "float"] = Field(
        description="int8 is full-integer; float quantizes them while it runs (dynamic range): no calibration."
    )
    ranges: Literal["moving_average", "minmax"] = Field(description="Of activations over the images.")


def candidates(options: Options, search: str) -> list[Options]:
    """Return the schemes to try, the declared one first."""
    found = [options, *(options.model_copy(update={"ranges": r}) for r in ("moving_average", "minmax"))]
    for activations in ("float", "int16") if search == "thorough" else ("float",):
        found.append(options.model_copy(update={"activations": activations}))
    return list(dict.fromkeys(found))


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.tflite` of an FP32 ONNX model in `precision`; it takes and gives float."""
    out.mkdir(parents=True, exist_ok=True)
    target, fp32 = out / FILES[0], tflite.convert(source)
    if precision == "fp32":
        shutil.copyfile(fp32, target)
        return {"quantizer": "none"}
    from ai_edge_quantizer import quantizer, recipe, recipe_manager

    everything, nothing = "*", "no_quantize"
    if precision == "fp16":
        halves = recipe_manager.RecipeManager()
        halves.add_weight_only_config(".*", everything, num_bits=16, algorithm_key="float_casting")
        chosen = halves.get_quantization_recipe()
    else:
        assert calibration is not None and options is not None
        static = {"int8": recipe.static_wi8_ai8, "int16": recipe.static_wi8_ai16}
        chosen = static.get(options.activations, recipe.dynamic_wi8_afp32)()
        ends = [(".*", "INPUT"), (".*", "OUTPUT")] if options.activations != "float" else []
        kept = [(f"^{re.escape(name)};?$", everything) for name in keep]
        chosen += [{"regex": r, "operation": o, "algorithm_key": nothing, "op_config": {}} for r, o in ends + kept]
    work = quantizer.Quantizer(fp32, chosen)
    ranges = None
    if work.need_calibration:
        assert calibration is not None and options is not None
        ranges = _ranges(work, _interpreter(fp32).get_signature_list(), calibration, options)
    work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).export_model(target, overwrite=True)
    if calibration is None or options is None:
        return {"quantizer": "none"}
    _describe(target, f"quantmill_calibration={calibration.digest}")
    return {"quantizer": "ai-edge-quantizer", **options.model_dump()}


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators of an INT8 artifact that compute on quantized values, in their order."""
    return [name for name, kind, int8, _ in _operators(artifact) if int8 and kind not in ("QUANTIZE", "DEQUANTIZE")]


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open an interpreter with XNNPACK and `threads` threads; a batch goes through it image by image."""
    import numpy
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(artifact), num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]
    exits = [output["index"] for output in interpreter.get_output_details()]

    def one(image):  # type: ignore[no-untyped-def]
        interpreter.set_tensor(entry, numpy.ascontiguousarray(image.transpose(1, 2, 0))[None])
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in exits]

    return lambda batch: [numpy.concatenate(parts) for parts in zip(*map(one, batch), strict=True)]


def load_plain(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Open an interpreter without XNNPACK, with the kernels that devices without it run; threads are its own."""
    interpreter = _interpreter(artifact)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]
    exits = [output["index"] for output in interpreter.get_output_details()]

    def one(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        interpreter.set_tensor(entry, np.ascontiguousarray(image.transpose(1, 2, 0))[None])
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in exits]

    return lambda batch: [np.concatenate(parts) for parts in zip(*map(one, batch), strict=True)]


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return the operators of the file, which XNNPACK takes one to one: it runs INT8 where inputs or weights are."""
    return [
        Operator(name, kind, "int8" if int8 else "float", multiply_adds)
        for name, kind, int8, multiply_adds in _operators(artifact)
        if kind in KINDS
    ]


def _operators(artifact: Path) -> Iterator[tuple[str, str, bool, int]]:
    """Yield each operator: the name of what it gives, its kind, whether it computes in INT8, and multiply-adds."""
    interpreter = _interpreter(artifact)
    tensors = {t["index"]: t for t in interpreter.get_tensor_details()}
    for operator in interpreter._get_ops_details():
        inputs = [tensors[i] for i in operator["inputs"] if i in tensors]
        output, kind = tensors[operator["outputs"][0]], operator["op_name"]
        integer = [t["dtype"] in (np.int8, np.int16) for t in inputs]
        # With float inputs, INT8 weights make a dynamic-range kernel; a kind without weights has none.
        int8 = bool(integer) and (integer[0] or (kind in KINDS and len(integer) > 1 and integer[1]))
        weights = inputs[1]["shape"] if len(inputs) > 1 else np.ones(1, int)
        each = int(np.prod(weights[1:3])) if kind == "DEPTHWISE_CONV_2D" else int(np.prod(weights[1:]))
        yield output["name"], kind, int8, int(np.prod(output["shape"])) * each


def _interpreter(artifact: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Without a delegate the operators are those of the file.
    return Interpreter(str(artifact), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)


def _ranges(work: Any, signatures: dict[str, Any], calibration: Calibration, options: Options) -> dict[str, Any]:
    """Return the ranges of all tensors. The calibrator lists what it is given: it gets one image at a time."""
    (name,) = signatures
    (entry,) = signatures[name]["inputs"]
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors", category=UserWarning)
        for image in calibration.inputs():
            sample = [{entry: np.ascontiguousarray(image.transpose(0, 2, 3, 1))}]
            if options.ranges == "moving_average":
                found = work.calibrate({name: sample}, found or None, num_threads=1)
                continue
            for tensor, new in work.calibrate({name: sample}, num_threads=1).items():
                old = found.setdefault(tensor, new)
                found[tensor] = {"min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}
    return found


def _describe(path: Path, text: str) -> None:
    """Write a text into the description of a TFLite file, whose weights may lie behind its flatbuffer."""
    import flatbuffers
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(np.fromfile(path, np.uint8))
    model.description = text
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
