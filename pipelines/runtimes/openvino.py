"""OpenVINO: x86 CPU, Intel GPU and NPU. INT8 by NNCF post-training quantization."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.calibration import Calibration
from pipelines.params import Section
from pipelines.runtimes import OPENVINO, Operator

PACKAGES = ("openvino", "nncf")
TOOLS: tuple[Path, ...] = ()
INSTEAD = None
ELSEWHERE = OPENVINO[1:]
PRECISIONS = ("fp32", "fp16", "int8")
FILES = ("model.xml", "model.bin")
# These pass INT8 on as it is: NNCF puts no FakeQuantize behind them.
CARRY: tuple[str, ...] = (
    "Concat",
    "DepthToSpace",
    "Gather",
    "MaxPool",
    "Pad",
    "Reshape",
    "ShuffleChannels",
    "Split",
    "Squeeze",
)
CARRY += ("StridedSlice", "Transpose", "Unsqueeze", "VariadicSplit")


class Options(Section):
    """How NNCF quantizes for OpenVINO."""

    preset: Literal["performance", "mixed"] = Field(description="mixed: asymmetric activations.")
    bias_correction: Literal["off", "fast", "full"]
    ranges: Literal["mean_minmax", "minmax", "mean_no_outliers_minmax", "histogram"] = Field(
        description="mean_minmax is minmax where channels have ranges of their own (depthwise), as in NNCF."
    )
    smooth_quant: bool = Field(description="Move the range of activations into the weights of convolutions too.")
    fuse_activations: bool = Field(
        default=True,
        description="Before NNCF sees them: faster. false quantizes what goes into them too, as NNCF does.",
    )


def candidates(options: Options, search: str) -> list[Options]:
    """Return the schemes to try, the declared one first: one thing changed at a time, or (thorough) all together."""
    presets: tuple[Any, ...] = ("performance", "mixed")
    ranges: tuple[Any, ...] = ("mean_minmax", "mean_no_outliers_minmax", "minmax", "histogram")
    found = [options]
    if search == "fast":
        found += [options.model_copy(update={"preset": p}) for p in presets]
        found += [options.model_copy(update={"ranges": r}) for r in ranges[:2]]
        found += [
            options.model_copy(update={"smooth_quant": True}),
            options.model_copy(update={"fuse_activations": False}),
        ]
    else:
        for preset, correction, each, smooth in itertools.product(
            presets, ("fast", "off", "full"), ranges, (False, True)
        ):
            change = {"preset": preset, "bias_correction": correction, "ranges": each, "smooth_quant": smooth}
            found.append(options.model_copy(update=change))
        apart = {"fuse_activations": False, "smooth_quant": False, "bias_correction": "fast"}
        found += [options.model_copy(update={**apart, "preset": p, "ranges": r}) for p in presets for r in ranges]
    return list(dict.fromkeys(found))


def quantize(
    source: Path,
    calibration: Calibration | None,
    precision: str,
    options: Options | None,
    out: Path,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.xml` and `model.bin` of an FP32 ONNX model in `precision`.

    The model goes through `convert_model`, which fuses activations before NNCF sees them; after `read_model` they
    are quantized apart and some of the runtime's fusions are lost.
    """
    import openvino

    fused = options is None or options.fuse_activations
    model = openvino.convert_model(source) if fused else openvino.Core().read_model(source)
    done: dict[str, Any] = {"quantizer": "none"}
    if precision == "int8":
        assert calibration is not None and options is not None
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf.set_log_level(30)
        _rename(model)
        # Given by name, the mean would also be taken of ranges per channel, and clip them.
        own = options.ranges == "mean_minmax"
        ranges = None if own else getattr(RangeEstimatorParametersSet, options.ranges.upper())
        model = nncf.quantize(
            model,
            nncf.Dataset(calibration.inputs()),
            preset=nncf.QuantizationPreset(options.preset),
            subset_size=len(calibration),
            fast_bias_correction=options.bias_correction != "full",
            ignored_scope=nncf.IgnoredScope(names=list(keep), validate=False) if keep else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=options.bias_correction == "off",
                activations_range_estimator_params=ranges,
                # NNCF's own strengths: 0.15 for convolutions, and for matrix products those of its transformer type.
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(
                    convolution=0.15 if options.smooth_quant else -1, matmul=0.95 if options.smooth_quant else -1
                ),
            ),
        )
        model.set_rt_info(calibration.digest, "quantmill_calibration")
        done = {"quantizer": "nncf", **options.model_dump()}
    _rename(model)
    out.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, out / FILES[0], compress_to_fp16=precision == "fp16")
    return done


def quantized(artifact: Path) -> list[str]:
    """Return the names of the operators of an INT8 artifact that take quantized inputs, in the order of the graph."""
    import openvino

    found, carried = [], set()
    for operation in openvino.Core().read_model(artifact).get_ordered_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        sources = [i.get_source_output().get_node() for i in operation.inputs()]
        int8 = any(s.get_type_name() == "FakeQuantize" or s.get_friendly_name() in carried for s in sources)
        if int8 and kind not in ("FakeQuantize", "Result"):
            found.append(name)
            if kind in CARRY:
                carried.add(name)
    return found


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
