"""Quantization-aware training: the pruned student once more under the teacher, with INT8 imitated in its layers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines import distillation, fp32, models, ranges, training
from pipelines.calibration import Calibration
from pipelines.files import write_json
from pipelines.params import Section, section

if TYPE_CHECKING:
    import torch
    from torch import nn

IMITATION = "int8_inputs"  # the submodule that rounds what a layer takes
FIRST = 32  # training images that the ranges begin with


class Qat(Section):
    """When the student is trained for INT8, and how."""

    when: Literal["never", "if_needed", "always"] = Field(
        description="if_needed: where a search finds no INT8 that keeps the aim. Each INT8 target trains its own."
    )
    schedule: training.Schedule
    loss: distillation.Weights


def retrain(
    name: str, data: Path, teacher: Path, pruned: Path, frozen: Calibration, options: Qat, out: Path
) -> tuple[Path, Calibration, list[dict[str, float]]]:
    """Return the FP32 ONNX file of the student trained for INT8, its calibration, and the curves of the training.

    The calibration has the images and the digest of `frozen`, and the ranges of the new weights. Both lie in `out`.
    """
    setup = training.prepare(data)
    model, spec = models.load(pruned / "model.safetensors")
    under = models.load(teacher / "model.safetensors")[0]
    _, images = next(training.Pixels(setup).batches(setup.dataset.rows("train")[:FIRST], FIRST))
    imitate(model, images)
    curves = distillation.fit(f"qat-{name}", model, under, setup, options.schedule, options.loss)
    forget(model)
    source, folder = out / "trained.onnx", out / "calibration"
    size = spec["preprocess"]
    fp32.export(model.eval(), (spec["channels"], size["height"], size["width"]), source)
    write_json(folder / "manifest.json", frozen.manifest)
    calibration = Calibration(data, folder)
    declared = section("calibrate", ranges.Calibrate)
    histograms = ranges.collect(source, calibration, declared.bins)
    rows = [ranges.describe(tensor, *found, declared.percentile) for tensor, found in histograms.items()]
    ranges.write_csv(folder / "activations.csv", rows)
    return source, calibration, curves


def imitate(model: "nn.Module", images: "torch.Tensor") -> None:
    """Let every convolution and matrix product of `model` see inputs and weights as INT8 would hold them.

    Inputs in 256 levels between the moving averages of their extremes, which begin with those of `images`, float32
    N x C x H x W; weights in 255 levels per output channel, symmetric, as every runtime has them. Rounding passes
    gradients on as they are. Source: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018; by torch's
    FakeQuantize.
    """
    import torch
    from torch import nn
    from torch.ao import quantization
    from torch.nn.utils import parametrize

    for layer in list(model.modules()):
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        weights = quantization.FakeQuantize(
            quantization.MovingAveragePerChannelMinMaxObserver,
            quant_min=-127,
            quant_max=127,
            averaging_constant=1.0,  # the weights as they are now, not as they were
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            ch_axis=1 if isinstance(layer, nn.ConvTranspose2d) else 0,
        )
        inputs = quantization.FakeQuantize(
            quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
        )
        parametrize.register_parametrization(layer, "weight", weights)
        layer.add_module(IMITATION, inputs)
        layer.register_forward_pre_hook(_round)
    # A trainer may average copies of the model: their ranges must have a beginning.
    model.eval()
    for layer in model.modules():
        if hasattr(layer, IMITATION):
            layer.train()
    with torch.no_grad():
        getattr(model, "every_output", model)(images)


def forget(model: "nn.Module") -> None:
    """Make `model` again what it was before `imitate`, with the weights that it has now."""
    from torch.nn.utils import parametrize

    for layer in list(model.modules()):
        if IMITATION in dict(layer.named_children()):
            layer._forward_pre_hooks = type(layer._forward_pre_hooks)(
                (key, hook) for key, hook in layer._forward_pre_hooks.items() if hook is not _round
            )
            delattr(layer, IMITATION)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _round(layer: "nn.Module", given: tuple[Any, ...]) -> tuple[Any, ...]:
    rounding: Any = layer.get_submodule(IMITATION)
    rounding.enable_observer(layer.training)  # the validation split sets no range
    if not layer.training:  # of an average of models the range may be averaged, and the zero point cannot
        scale, zero_point = rounding.calculate_qparams()
        rounding.scale.copy_(scale)
        rounding.zero_point.copy_(zero_point)
    return (rounding(given[0]), *given[1:])
