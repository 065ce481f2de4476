"""Prunes whole channels of the student, and fine-tunes it under the teacher."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines import distillation, models, training
from pipelines.files import write_json
from pipelines.params import Section, section
from pipelines.stage import StageError, run

if TYPE_CHECKING:
    from torch import nn

STEPS = 40
UNPRUNABLE = "params.yaml: student: this architecture cannot be pruned; set prune.ratio to 0"


class Prune(Section):
    """How much is pruned, and how the rest is fine-tuned."""

    ratio: float = Field(ge=0, lt=1, description="Share of the student's multiply-adds to remove.")
    round_to: int = Field(ge=1, description="Widths stay multiples of this, for the vector units of the target.")
    schedule: training.Schedule
    loss: distillation.Weights


def main(data: Path, teacher: Path, student: Path, out: Path) -> None:
    """Write `out`: `model.safetensors`, `curves.csv`, and `pruning.json` with multiply-adds before and after."""
    setup = training.prepare(data)
    options = section("prune", Prune)
    model, spec = models.load(student / "model.safetensors")
    shape = (1, spec["channels"], setup.preprocess.height, setup.preprocess.width)
    report = prune(model, shape, options.ratio, options.round_to)
    comes_back(model, spec, shape)
    under = models.load(teacher / "model.safetensors")[0]
    curves = distillation.fit("prune", model, under, setup, options.schedule, options.loss)
    models.save(out / "model.safetensors", model, spec)
    training.write_curves(out / "curves.csv", curves)
    write_json(out / "pruning.json", report)
    print(
        f"{report['macs_removed']:.1%} of the multiply-adds and {report['parameters_removed']:.1%} of the weights gone"
    )


def prune(model: "nn.Module", shape: tuple[int, ...], ratio: float, round_to: int) -> dict[str, Any]:
    """Remove channels of `model` in place until `ratio` of its multiply-adds are gone; return the counts.

    Channels that depend on each other go together (Fang et al., DepGraph, CVPR 2023, by torch-pruning), least
    group L2 norm first over all layers. Raises StageError when that share cannot be reached.
    """
    import torch
    import torch_pruning

    images = torch.zeros(shape)
    before, weights = torch_pruning.utils.count_ops_and_params(model, images)
    if ratio == 0:
        return _report(before, before, weights, weights)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.95,
        max_pruning_ratio=0.95,
        iterative_steps=STEPS,
        # Of what is trained but not run, such as a second head, the channels that it takes go too.
        forward_fn=(lambda net, x: net.every_output(x)) if hasattr(model, "every_output") else None,
        round_to=round_to,
        ignored_layers=[model.get_submodule("head"), *getattr(model, "unprunable", ())],
    )
    macs = before
    for _ in range(STEPS):
        try:
            pruner.step()
        except (IndexError, RuntimeError) as error:
            raise StageError(f"{UNPRUNABLE}: {' '.join(str(error).split())[:200]}") from None
        macs, left = torch_pruning.utils.count_ops_and_params(model, images)
        if macs <= (1 - ratio) * before:
            return _report(before, macs, weights, left)
    raise StageError(
        f"params.yaml: prune.ratio: only {1 - macs / before:.0%} of the multiply-adds can be removed; "
        "lower it, or make the student wider"
    )


def comes_back(model: "nn.Module", spec: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Raise StageError when the pruned model cannot be built again from its weights alone."""
    import torch

    copy = models.build(spec["model"], spec["channels"], len(spec["classes"]), "student").eval()
    tensors = model.state_dict()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        models.narrow(copy, tensors)
        copy.load_state_dict(tensors)
        with torch.inference_mode():
            same = all(
                torch.allclose(one, other, atol=1e-5)
                for one, other in zip(_several(copy(images)), _several(model.eval()(images)), strict=True)
            )
    except (RuntimeError, ValueError, AttributeError) as error:
        raise StageError(f"{UNPRUNABLE}: {' '.join(str(error).split())[:200]}") from None
    if not same:
        raise StageError(f"{UNPRUNABLE}: built from its pruned weights it gives other outputs")


def _several(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _report(before: float, after: float, weights: float, left: float) -> dict[str, Any]:
    return {
        "macs": int(after),
        "macs_before": int(before),
        "macs_removed": 1 - after / before,
        "parameters": int(left),
        "parameters_before": int(weights),
        "parameters_removed": 1 - left / weights,
    }


if __name__ == "__main__":
    run(main)
