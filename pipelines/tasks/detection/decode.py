"""From the outputs of a detector to boxes in pixels of the image. Needs numpy alone, and travels in its bundles.

The model gives maps, not boxes: class scores as logits, and logarithms of the distances from a cell's centre to the
four sides. Each has an INT8 scale of its own, and a rounding of the logarithm is the same share of every box, small or
large; coordinates in pixels beside scores under one scale would leave nothing of the scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.preprocess import Preprocess


def decode(
    outputs: Sequence[NDArray[Any]],
    postprocess: dict[str, Any],
    preprocess: Preprocess,
    shapes: Sequence[tuple[int, ...]],
) -> list[dict[str, Any]]:
    """Return the `objects` of each image, the surest first: label, class, score, and x, y, width, height in pixels.

    `shapes` has the height and width of each image as it came; x and y are the left and upper edge.
    """
    found = boxes(outputs, preprocess, shapes, postprocess["most"], postprocess["least"])
    return [
        {
            "objects": [
                {
                    "label": postprocess["classes"][int(label)],
                    "class": int(label),
                    "score": round(score, 6),
                    **{k: round(v, 2) for k, v in zip(("x", "y", "width", "height"), box, strict=True)},
                }
                for *box, label, score in one.tolist()
            ]
        }
        for one in found
    ]


def hits(prediction: dict[str, Any], truth: NDArray[Any]) -> int:
    """Return how many boxes of `truth` (N x 5, class id -1 for none) an object of that class covers by IoU 0.5."""
    rows = [[o[k] for k in ("x", "y", "width", "height", "class")] for o in prediction["objects"]]
    found, wanted = np.array(rows, np.float64).reshape(-1, 5), truth[truth[:, 4] >= 0]
    alike = (iou(wanted[:, :4], found[:, :4]) >= 0.5) & (wanted[:, None, 4] == found[None, :, 4])
    return int(alike.any(1).sum())


def boxes(
    outputs: Sequence[NDArray[Any]],
    preprocess: Preprocess,
    shapes: Sequence[tuple[int, ...]],
    most: int,
    least: float,
) -> list[NDArray[np.float64]]:
    """Return the boxes of each image in its own pixels, N x 6: left, top, width, height, class id and score."""
    found = []
    for (height, width, *_), shares in zip(shapes, cells(outputs, most, least), strict=True):
        sides = np.c_[shares[:, :2], shares[:, :2] + shares[:, 2:4]]
        sides *= np.array([preprocess.width, preprocess.height] * 2)
        corners = preprocess.restore(sides, height, width)
        found.append(np.c_[corners[:, :2], corners[:, 2:] - corners[:, :2], shares[:, 4:]])
    return found


def cells(outputs: Sequence[NDArray[Any]], most: int, least: float) -> list[NDArray[np.float64]]:
    """Return the boxes of each image as `boxes` does, but as shares of the edges of the model's input.

    `outputs` are logits, images x classes x h x w, and logarithms of distances, images x 4 x h x w, in cells. An
    object is a cell whose score no neighbour of the same class exceeds (the peaks of CenterNet, Zhou et al., Objects
    as Points, arXiv:1904.07850, 3); no overlapping boxes need be suppressed. At most `most` of a score of `least`.
    """
    logits, distances = (np.asarray(output, np.float64) for output in outputs)
    height, width = logits.shape[2:]
    scores = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    scores[~peaks(logits)] = 0
    found = []
    for image, sides in zip(scores, distances, strict=True):
        flat = image.ravel()
        best = np.argsort(-flat, kind="stable")[:most]
        best = best[flat[best] >= least]
        label, y, x = np.unravel_index(best, image.shape)
        left, top, right, bottom = np.exp(np.clip(sides[:, y, x], -10, 10))
        corner = np.stack([(x + 0.5 - left) / width, (y + 0.5 - top) / height], 1)
        found.append(np.c_[corner, (left + right) / width, (top + bottom) / height, label, flat[best]])
    return found


def peaks(maps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say of each cell of maps, ... x h x w, whether none of its eight neighbours is higher.

    Of equal neighbours, which INT8 makes, the first counts, so that no object is found twice.
    """
    height, width = maps.shape[-2:]
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(1, 1), (1, 1)], constant_values=-np.inf)
    found = np.ones(maps.shape, bool)
    for y, x in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
        neighbour = padded[..., y : y + height, x : x + width]
        found &= maps > neighbour if (y, x) < (1, 1) else maps >= neighbour
    return found


def iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of each box of N x 4 with each of M x 4 (left, top, width, height): N x M."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum((one[:, :2] + one[:, 2:])[:, None], (other[:, :2] + other[:, 2:])[None])
    shared = np.clip(high - low, 0, None).prod(2)
    whole = one[:, 2:].prod(1)[:, None] + other[:, 2:].prod(1)[None] - shared
    return np.asarray(shared / np.maximum(whole, 1e-12))
