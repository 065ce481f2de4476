"""OpenVINO: x86 CPU, Intel GPU and NPU. INT8 by NNCF post-training quantization."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import Operator

PACKAGES = ("openvino", "nncf")
PRECISIONS = ("fp32", "fp16", "int8")
FILES = ("model.xml", "model.bin")


class Options(Section):
    """How NNCF quantizes for OpenVINO."""

    preset: Literal["performance", "mixed"]
    bias_correction: Literal["fast", "full"]


def quantize(
    source: Path, calibration: Calibration | None, precision: str, options: Options | None, out: Path
) -> dict[str, Any]:
    """Write `model.xml` and `model.bin` of an FP32 ONNX model in `precision`.

    The model goes through `convert_model`, which fuses activations before NNCF sees them; after `read_model` they
    are quantized apart and the runtime's fusions are lost.
    """
    import openvino

    model = openvino.convert_model(source)
    done: dict[str, Any] = {"quantizer": "none"}
    if precision == "int8":
        assert calibration is not None and options is not None
        import nncf

        nncf.set_log_level(30)
        model = nncf.quantize(
            model,
            nncf.Dataset(calibration.inputs()),
            preset=nncf.QuantizationPreset(options.preset),
            subset_size=len(calibration),
            fast_bias_correction=options.bias_correction == "fast",
        )
        model.set_rt_info(calibration.digest, "quantmill_calibration")
        done = {"quantizer": "nncf", **options.model_dump()}
    _rename(model)
    out.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, out / FILES[0], compress_to_fp16=precision == "fp16")
    return done


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Compile the artifact for the CPU with `threads` threads, once for each batch size that it meets."""
    import openvino

    core = openvino.Core()
    model = core.read_model(artifact)
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    requests = {}

    def predict(batch):  # type: ignore[no-untyped-def]
        if batch.shape not in requests:
            # A model of fixed shape runs faster than one of dynamic batch.
            fixed = model.clone()
            fixed.reshape(list(batch.shape))
            requests[batch.shape] = core.compile_model(fixed, "CPU", config).create_infer_request()
        request = requests[batch.shape]
        request.infer({0: batch}, share_inputs=True)
        return [output.data.copy() for output in request.output_tensors]

    return predict


def operators(artifact: Path, shape: list[int]) -> list[Operator]:
    """Return what the CPU plugin executes for one image, from its runtime model (`execType`, after all fusions)."""
    import math

    import openvino

    core = openvino.Core()
    model = core.read_model(artifact)
    model.reshape([1, *shape])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {k: v.astype(str) for k, v in node.get_rt_info().items() if k in ("layerType", "runtimePrecision")}
        if (kind := facts.get("layerType", "")) not in ("Convolution", "FullyConnected", "MatMul", "Deconvolution"):
            continue
        output, weights = list(node.get_output_shape(0)), list(node.input_value(1).get_shape())
        channels = output[1] if "onvolution" in kind else output[-1]
        each = weights[-2] if kind == "MatMul" else math.prod(weights) // channels
        precision = "int8" if facts["runtimePrecision"] in ("u8", "i8") else "float"
        found.append(Operator(node.get_friendly_name(), kind, precision, math.prod(output) * each))
    return found


def _rename(model: Any) -> None:
    """Name generated operations, `Type_number`, by their place: the numbers differ from run to run."""
    for place, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r".+_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{place}")
