"""The loss of a student under a teacher: labels, softened logits, and attention maps of features."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines import training
from pipelines.params import Section
from pipelines.stage import StageError
from pipelines.training import Loss, Schedule, Setup

if TYPE_CHECKING:
    import torch
    from torch import nn


class Weights(Section):
    """How much each part of the loss counts."""

    temperature: float = Field(gt=0, description="By which logits are divided before they are compared.")
    labels: float = Field(ge=0, description="Weight of the task's own loss.")
    logits: float = Field(ge=0, description="Weight of the distance to the teacher's softened logits.")
    features: float = Field(ge=0, description="Weight of the distance to the teacher's attention map.")


def fit(
    name: str, model: "nn.Module", teacher: "nn.Module", setup: Setup, schedule: Schedule, weights: Weights
) -> list[dict[str, float]]:
    """Train a student under its teacher in place, and return its curves.

    A model with a `fit` of its own distills features alone. Raises StageError when more is declared for it.
    """
    if not hasattr(model, "fit"):
        return training.fit(name, model, setup, schedule, loss(teacher, setup, weights))
    if weights.logits or weights.labels != 1:
        raise StageError(
            f"params.yaml: {name}: this family distills features alone; set loss.labels to 1 and loss.logits to 0"
        )
    own: list[dict[str, float]] = model.fit(name, setup, schedule, teacher, weights.features)
    return own


def loss(teacher: "nn.Module", setup: Setup, weights: Weights) -> Loss:
    """Return the loss of a student, given images and truth, under a frozen teacher."""
    import torch

    teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    task = setup.task

    def under_teacher(student: "nn.Module", images: "torch.Tensor", truth: "torch.Tensor") -> "torch.Tensor":
        with torch.no_grad():
            wanted, wanted_features = _with_features(teacher, images)
        outputs, features = _with_features(student, images)
        return (
            weights.labels * task.loss(outputs, truth)
            + weights.logits * task.distillation(outputs, wanted, weights.temperature)
            + weights.features * attention_distance(features, wanted_features)
        )

    def without_features(student: "nn.Module", images: "torch.Tensor", truth: "torch.Tensor") -> "torch.Tensor":
        with torch.no_grad():
            wanted = teacher(images)
        outputs = student(images)
        logits = task.distillation(outputs, wanted, weights.temperature)
        return weights.labels * task.loss(outputs, truth) + weights.logits * logits

    return under_teacher if weights.features else without_features


def attention_distance(features: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
    """Return the mean squared distance of the normalized attention maps of two N x C x h x w tensors.

    The map of an image is the mean over channels of the squared activations; the larger map is pooled to the
    smaller. Source: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, activation-based.
    """
    from torch.nn import functional

    size = [min(a, b) for a, b in zip(features.shape[2:], wanted.shape[2:], strict=True)]

    def attention(maps: "torch.Tensor") -> "torch.Tensor":
        pooled = functional.adaptive_avg_pool2d(maps.pow(2).mean(1, keepdim=True), size)
        return functional.normalize(pooled.flatten(1), dim=1)

    return (attention(features) - attention(wanted)).pow(2).sum(1).mean()


def _with_features(model: "nn.Module", images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    if not hasattr(model, "features"):
        raise StageError(
            "params.yaml: loss.features: teacher or student names no `features` to compare; "
            "name a submodule of each, or set loss.features to 0"
        )
    kept: list[Any] = []
    handle = model.get_submodule("features").register_forward_hook(lambda *call: kept.append(call[2]))
    try:
        return model(images), kept[0]
    finally:
        handle.remove()
