"""Image classification: one class per image, top-1 accuracy."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data import Dataset
from pipelines.preprocess import Preprocess

if TYPE_CHECKING:
    import torch

METRIC = "accuracy"
POSTPROCESS = {"task": "classification", "activation": "softmax", "top": 1}


def truth(
    dataset: Dataset, rows: NDArray[np.int64], _preprocess: Preprocess, _postprocess: dict[str, Any] | None = None
) -> NDArray[np.int64]:
    """Return what the model should say of each row: the class ids, N."""
    return dataset.labels[rows]


def unfit(outputs: Any, classes: int) -> str | None:
    """Return what is wrong with what a model gives for two images, or None: logits 2 x classes are wanted."""
    shape = list(getattr(outputs, "shape", []))
    if shape == [2, classes]:
        return None
    found = " x ".join(map(str, ["N", *shape[1:]])) if shape else type(outputs).__name__
    return f"gives {found}; wanted are logits, N x {classes}, one for each class of the data"


def targets(
    dataset: Dataset, rows: NDArray[np.int64], _preprocess: Preprocess, _matrices: "torch.Tensor"
) -> "torch.Tensor":
    """Return the class ids of each row, N; no augmentation changes them."""
    import torch

    return torch.from_numpy(dataset.labels[rows])


def golden(dataset: Dataset, rows: NDArray[np.int64], _preprocess: Preprocess) -> NDArray[np.int64]:
    """Return what `decode.hits` takes as the truth of each row: the class ids, N."""
    return dataset.labels[rows]


def loss(outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Return the mean cross-entropy of logits N x classes against class ids N."""
    from torch.nn import functional

    return functional.cross_entropy(outputs, labels)


def distillation(student: "torch.Tensor", teacher: "torch.Tensor", temperature: float) -> "torch.Tensor":
    """Return KL(teacher || student) of logits softened by `temperature`, times its square.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    from torch.nn import functional

    soft = functional.log_softmax(student / temperature, 1)
    return functional.kl_div(soft, functional.softmax(teacher / temperature, 1), reduction="batchmean") * temperature**2


def scorer(
    outputs: list[NDArray[Any]], labels: NDArray[np.int64], _part: str | None = None
) -> Callable[[NDArray[np.int64] | None], float]:
    """Return a function that gives the top-1 accuracy over a sample of the images (None: over each once).

    The parts of `slices` are images, so that their name says nothing more.
    """
    right = (outputs[0].argmax(1) == labels).astype(np.float64)
    return lambda sample: float(right.mean() if sample is None else right[sample].mean())


def details(_outputs: list[NDArray[Any]], _labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics that are given beside the main one: none."""
    return {}


def agreement(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Return the share of images to which two models give the same class."""
    return float((one[0].argmax(1) == other[0].argmax(1)).mean())


def slices(labels: NDArray[np.int64], classes: list[str]) -> dict[str, NDArray[np.int64]]:
    """Return the places of the images of each class that has any."""
    return {f"class {name}": np.flatnonzero(labels == n) for n, name in enumerate(classes) if (labels == n).any()}
