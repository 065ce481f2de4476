"""Object detection: boxes with classes, the mean average precision of COCO."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data import Dataset
from pipelines.preprocess import Preprocess
from pipelines.tasks.detection import average_precision, decode
from pipelines.tasks.detection.average_precision import SIZES, Matches

if TYPE_CHECKING:
    import torch

METRIC = "mAP50-95"
POSTPROCESS: dict[str, Any] = {
    "task": "detection",
    "activation": "sigmoid",
    "most": average_precision.MOST,
    "least": 0.01,
    "overlap": None,  # IoU from which on the weaker of two boxes of a class is dropped
}
SEEN = 0.05  # share of the highest score from which on an object counts in `agreement`


@dataclass(frozen=True, eq=False)
class Truth:
    """The boxes of images, each N x 5 (left, top, width, height in pixels, class id), and what models see of them."""

    boxes: list[NDArray[np.float64]]
    shapes: list[tuple[int, ...]]  # height and width of each image
    classes: list[str]
    preprocess: Preprocess
    postprocess: dict[str, Any]
    matched: dict[tuple[str, str], list[Matches]] = field(default_factory=dict)  # by outputs' hash and size

    def __len__(self) -> int:
        return len(self.boxes)


def truth(
    dataset: Dataset, rows: NDArray[np.int64], preprocess: Preprocess, postprocess: dict[str, Any] | None = None
) -> Truth:
    """Return what the model should say of each row; `postprocess` is what it declares other than POSTPROCESS."""
    heights, widths = (dataset.column(side)[rows].tolist() for side in ("height", "width"))
    shapes: list[tuple[int, ...]] = list(zip(heights, widths, strict=True))
    boxes = [dataset.boxes(int(row)) for row in rows]
    return Truth(boxes, shapes, dataset.classes, preprocess, {**POSTPROCESS, **(postprocess or {})})


def targets(
    dataset: Dataset, rows: NDArray[np.int64], preprocess: Preprocess, matrices: "torch.Tensor"
) -> "torch.Tensor":
    """Return the boxes of each row as the augmented input shows them.

    N x M x 5: left, top, right and bottom as shares of the input's edges, and class id, -1 in rows that fill up.
    `matrices`, N x 2 x 3, are those of `training.warp`, from places in the result to places in the input. Boxes of
    which less than a fifth is left, or that are smaller than a pixel, are dropped.
    """
    import torch

    said = truth(dataset, rows, preprocess)
    found = torch.full((len(rows), max(map(len, said.boxes), default=0) or 1, 5), -1.0)
    for n, (boxes, shape) in enumerate(zip(said.boxes, said.shapes, strict=True)):
        sides = preprocess.place(np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], *shape[:2])
        edges = torch.from_numpy(sides / np.array([preprocess.width, preprocess.height] * 2)).float() * 2 - 1
        moved = _move(edges, matrices[n])
        whole = (moved[:, 2:] - moved[:, :2]).prod(1)
        moved = moved.clamp(0, 1)
        size = moved[:, 2:] - moved[:, :2]
        seen = (size.prod(1) >= 0.2 * whole) & (size * torch.tensor([preprocess.width, preprocess.height]) >= 1).all(1)
        kept = torch.cat([moved, torch.from_numpy(boxes[:, 4:5]).float()], 1)[seen]
        found[n, : len(kept)] = kept
    return found


def golden(dataset: Dataset, rows: NDArray[np.int64], preprocess: Preprocess) -> NDArray[np.float64]:
    """Return what `decode.hits` takes as the truth of each row, whose image has the model's size.

    N x M x 5: left, top, width, height in pixels, and class id, -1 in rows that fill up.
    """
    said = truth(dataset, rows, preprocess)
    found = np.full((len(rows), max(map(len, said.boxes), default=0) or 1, 5), -1.0)
    for n, (boxes, shape) in enumerate(zip(said.boxes, said.shapes, strict=True)):
        sides = preprocess.place(np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], *shape[:2])
        found[n, : len(boxes)] = np.c_[sides[:, :2], sides[:, 2:] - sides[:, :2], boxes[:, 4]]
    return found


def unfit(outputs: Any, classes: int) -> str | None:
    """Return what is wrong with what a model gives for two images, or None: pairs of maps are wanted.

    Each is of scores, 2 x classes x h x w, and sides, 2 x 4 x h x w; a model may give a pair for each of its levels.
    """
    maps = outputs if isinstance(outputs, tuple) else (outputs,)
    shapes = [tuple(getattr(m, "shape", ())) for m in maps]
    pairs = zip(shapes[::2], shapes[1::2], strict=False)
    if len(shapes) % 2 == 0 and all(a[:2] == (2, classes) and b == (2, 4, *a[2:]) and len(b) == 4 for a, b in pairs):
        return None
    found = ", ".join(" x ".join(map(str, ("N", *shape[1:]))) for shape in shapes)
    return f"gives {found}; wanted are scores, N x {classes} x h x w, and sides, N x 4 x h x w, for each level"


def _move(edges: "torch.Tensor", matrix: "torch.Tensor") -> "torch.Tensor":
    """Return boxes N x 4 in places -1 to 1 as shares 0 to 1, after the inverse of `matrix`: what encloses them."""
    import torch

    back = torch.linalg.inv(matrix[:, :2])
    points = torch.stack([edges[:, [0, 2, 0, 2]], edges[:, [1, 1, 3, 3]]], 2)
    points = ((points - matrix[:, 2]) @ back.T + 1) / 2
    return torch.cat([points.amin(1), points.amax(1)], 1)


def loss(outputs: Any, wanted: "torch.Tensor") -> "torch.Tensor":
    """Return the loss of the model's two maps against `targets`."""
    from pipelines.tasks.detection import losses

    return losses.loss(outputs, wanted)


def distillation(student: Any, teacher: Any, temperature: float) -> "torch.Tensor":
    """Return the distance of a student's maps to those of its teacher, both with logits divided by `temperature`."""
    from pipelines.tasks.detection import losses

    return losses.distillation(student, teacher, temperature)


def scorer(
    outputs: list[NDArray[Any]], wanted: Truth, part: str | None = None
) -> Callable[[NDArray[np.int64] | None], float]:
    """Return a function that gives mAP50-95 over a sample of the images (None: over each once).

    `part` is a name of `slices`: one class, or objects of one size. NaN where the sample has no such object.
    """
    kind, _, name = (part or "").partition(" ")
    found = _matches(outputs, wanted, name if kind == "size" else "all")
    if kind == "class":
        found = found[wanted.classes.index(name) :][:1]
    return lambda sample: average_precision.mean(found, sample)


def details(outputs: list[NDArray[Any]], wanted: Truth) -> dict[str, float]:
    """Return the metrics that are given beside the main one: mAP at IoU 0.5."""
    return {"mAP50": average_precision.mean(_matches(outputs, wanted, "all"), ious=1)}


def agreement(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Return the share of the objects of two models that both see, each object counting by its score.

    Objects of one class that share an IoU of 0.5 are one. Of all scores s of the first and t of the second it is
    2 sum min(s, t) / (sum s + sum t), the Bray-Curtis similarity, over all images at once: images on which neither
    sees anything count for nothing. What counts as seen follows the highest score that the first gives, since a little
    trained model is never sure: two that are sure of nothing agree only where they see the same.
    """
    highest = max(1 / (1 + np.exp(-float(np.clip(logits.max(), -50, 50)))) for logits in one[::2])
    wanted = {**POSTPROCESS, "least": SEEN * highest, "overlap": 0.7}
    shared = whole = 0.0
    for a, b in zip(decode.cells(one, wanted), decode.cells(other, wanted), strict=True):
        shared += sum(min(a[n, 5], b[k, 5]) for n, k in _pairs(a, b))
        whole += float(a[:, 5].sum() + b[:, 5].sum())
    return 2 * shared / whole


def _pairs(one: NDArray[np.float64], other: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yield which objects of two models are one; the surest of the first chooses first."""
    alike = decode.iou(one[:, :4], other[:, :4])
    alike[one[:, None, 4] != other[None, :, 4]] = 0
    for place in range(len(one) if len(other) else 0):
        best = int(alike[place].argmax())
        if alike[place, best] >= 0.5:
            alike[:, best] = 0
            yield place, best


def slices(wanted: Truth, classes: list[str]) -> dict[str, NDArray[np.int64]]:
    """Return the parts that are also scored on their own: each class and each of COCO's sizes that has an object.

    Every image belongs to each of them, since a detection on any image may be wrong.
    """
    every = np.concatenate([np.zeros((0, 5)), *wanted.boxes])
    areas = every[:, 2] * every[:, 3]
    parts = [f"class {name}" for n, name in enumerate(classes) if (every[:, 4] == n).any()]
    sizes = [n for n, (low, high) in SIZES.items() if n != "all" and ((areas >= low) & (areas <= high)).any()]
    return {name: np.arange(len(wanted)) for name in [*parts, *(f"size {n}" for n in sizes)]}


def _matches(outputs: list[NDArray[Any]], wanted: Truth, size: str) -> list[Matches]:
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(np.ascontiguousarray(output).data)
    key = digest.hexdigest(), size
    if key not in wanted.matched:
        found = decode.boxes(outputs, wanted.preprocess, wanted.shapes, wanted.postprocess)
        wanted.matched[key] = average_precision.match(wanted.boxes, found, len(wanted.classes), size)
    return wanted.matched[key]
