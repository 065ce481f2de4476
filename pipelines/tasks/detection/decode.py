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
    found = boxes(outputs, preprocess, shapes, postprocess)
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
    postprocess: dict[str, Any],
) -> list[NDArray[np.float64]]:
    """Return the boxes of each image in its own pixels, N x 6: left, top, width, height, class id and score."""
    found = []
    for (height, width, *_), shares in zip(shapes, cells(outputs, postprocess), strict=True):
        sides = np.c_[shares[:, :2], shares[:, :2] + shares[:, 2:4]]
        sides *= np.array([preprocess.width, preprocess.height] * 2)
        corners = preprocess.restore(sides, height, width)
        found.append(np.c_[corners[:, :2], corners[:, 2:] - corners[:, :2], shares[:, 4:]])
    return found


def cells(outputs: Sequence[NDArray[Any]], postprocess: dict[str, Any]) -> list[NDArray[np.float64]]:
    """Return the boxes of each image as `boxes` does, but as shares of the edges of the model's input.

    `outputs` are pairs of maps, one for each level: logits, images x classes x h x w, and the distances from a cell's
    centre to its sides, images x 4 x h x w. Of a model that was given as ONNX they are candidates: logits, images x
    classes x A, and left, top, right and bottom as shares, images x 4 x A. At most `most` objects, of a score of
    `least`, are given.

    Of one level, the distances are logarithms of cells, and an object is a cell whose score no neighbour of the same
    class exceeds (the peaks of CenterNet, Zhou et al., Objects as Points, arXiv:1904.07850, 3). Of more, as YOLO has
    them, they are cells, and every cell is an object; where its head lets boxes of a class overlap, the weaker of two
    that share `overlap` (IoU) is dropped. So it is with candidates.
    """
    most, least, overlap = postprocess["most"], postprocess["least"], postprocess["overlap"]
    single, levels = len(outputs) == 2, []
    for place in range(0, len(outputs), 2):
        logits, sides = (np.asarray(output, np.float64) for output in outputs[place : place + 2])
        scores = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        if single and logits.ndim == 4:
            scores[~peaks(logits)] = 0
            sides = np.exp(np.clip(sides, -10, 10))
        levels.append((scores, sides))
    found = []
    for image in range(len(outputs[0])):
        taken = np.concatenate([_taken(scores[image], sides[image], least) for scores, sides in levels])
        taken = taken[np.argsort(-taken[:, 5], kind="stable")]
        if overlap is not None:
            taken = taken[_apart(taken[: 30 * most], overlap, most)]
        found.append(taken[:most])
    return found


def _taken(scores: NDArray[np.float64], sides: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return the objects of one level of one image, N x 6: left, top, width, height as shares, class id and score."""
    if scores.ndim == 2:
        label, place = np.nonzero(scores >= least)
        box = sides[:, place].T
        return np.asarray(np.c_[box[:, :2], box[:, 2:] - box[:, :2], label, scores[label, place]])
    height, width = scores.shape[1:]
    label, y, x = np.nonzero(scores >= least)
    left, top, right, bottom = sides[:, y, x]
    corner = np.stack([(x + 0.5 - left) / width, (y + 0.5 - top) / height], 1)
    return np.asarray(np.c_[corner, (left + right) / width, (top + bottom) / height, label, scores[label, y, x]])


def _apart(taken: NDArray[np.float64], overlap: float, most: int) -> list[int]:
    """Return the places of the objects, by falling score, that no stronger one of their class covers by `overlap`."""
    kept: list[int] = []
    for place, one in enumerate(taken):
        rivals = taken[[k for k in kept if taken[k, 4] == one[4]]]
        if not (iou(one[None, :4], rivals[:, :4]) > overlap).any():
            kept.append(place)
        if len(kept) == most:
            break
    return kept


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
