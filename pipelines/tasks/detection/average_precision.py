"""COCO's average precision, by pycocotools, and the same over resampled images without matching anew.

Boxes are matched once by pycocotools (BSD-2-Clause), image by image, class by class, at IoU 0.50:0.05:0.95. The metric
over a sample of the images is then a sum over those matches, each image counted as often as it was drawn: what
`COCOeval.accumulate` gives for a dataset in which an image drawn twice stands twice (but for detections of equal score,
whose order is arbitrary in both). That makes a bootstrap of
thousands of resamples a matter of seconds.

Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; cocodataset.org/#detection-eval.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 100  # detections per image that count, those of the highest scores first
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
RECALLS = np.linspace(0, 1, 101)
IOUS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Matches:
    """The matched detections of one class and size range: by falling score, D of them.

    `image` is the place of each one's image, `hit` and `counted` (not ignored), 10 x D, say at each IoU what it is;
    `objects` is how many objects each image has.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]


def match(
    truth: Sequence[NDArray[np.float64]], found: Sequence[NDArray[np.float64]], classes: int, size: str = "all"
) -> list[Matches]:
    """Return the matches of each class over the images.

    `truth` has for each image N x 5: left, top, width, height and class id; `found` N x 6: the same and a score.
    `size` is one of SIZES, the area in square pixels of the objects that count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset: dict[str, Any] = {
        "info": {},
        "images": [{"id": n} for n in range(len(truth))],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": int(b[4]), "bbox": b[:4], "area": b[2] * b[3], "iscrowd": 0}
            for n, (image, b) in enumerate(((i, b) for i, boxes in enumerate(truth) for b in boxes.tolist()), 1)
        ],
    }
    rows = [[image, *box[:4], box[5], box[4]] for image, boxes in enumerate(found) for box in boxes.tolist()]
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = COCO()
        wanted.dataset = dataset
        wanted.createIndex()
        coco = COCOeval(wanted, wanted.loadRes(np.array(rows)) if rows else _nothing(dataset), "bbox")
        coco.params.areaRng, coco.params.areaRngLbl = [list(SIZES[size])], [size]
        coco.params.maxDets = [MOST]
        coco.evaluate()
    count = len(truth)
    return [_of_class(coco.evalImgs[c * count : (c + 1) * count]) for c in range(classes)]


def _nothing(dataset: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**dataset, "annotations": []}
    empty.createIndex()
    return empty


def _of_class(images: Sequence[dict[str, list[float]] | None]) -> Matches:
    places, scores, hits, counted = [], [], [np.zeros((len(IOUS), 0), bool)], [np.zeros((len(IOUS), 0), bool)]
    objects = np.zeros(len(images), np.int64)
    for place, one in enumerate(images):
        if one is None:  # neither an object nor a detection of this class
            continue
        objects[place] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        matched, ignored = np.asarray(one["dtMatches"]) > 0, np.asarray(one["dtIgnore"]) > 0
        places += [place] * len(one["dtScores"])
        scores += list(one["dtScores"])
        hits.append(matched.reshape(len(IOUS), -1))
        counted.append(~ignored.reshape(len(IOUS), -1))
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    hit, real = np.concatenate(hits, 1)[:, order], np.concatenate(counted, 1)[:, order]
    # What comes after the last hit lowers no precision that counts, in no resample.
    useful = np.flatnonzero((hit & real).any(0))
    end = useful[-1] + 1 if len(useful) else 0
    return Matches(np.asarray(places, np.int64)[order][:end], hit[:, :end], real[:, :end], objects)


def average_precision(matches: Matches, sample: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return the average precision at each of IOUS over a sample of the images (None: over each once).

    NaN where the sample has no object. The steps are those of `COCOeval.accumulate`.
    """
    images = len(matches.objects)
    times = np.ones(images, np.int64) if sample is None else np.bincount(sample, minlength=images)
    total = int(times @ matches.objects)
    if not total:
        return np.full(len(IOUS), np.nan)
    weight = times[matches.image]
    hits = np.cumsum(np.where(matches.hit & matches.counted, weight, 0), axis=1)
    misses = np.cumsum(np.where(~matches.hit & matches.counted, weight, 0), axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros(len(IOUS))
    for n, (recall, reached) in enumerate(zip(hits / total, precision, strict=True)):
        at = np.searchsorted(recall, RECALLS, side="left")
        found[n] = reached[at[at < len(reached)]].sum() / len(RECALLS)
    return found


def mean(matches: Sequence[Matches], sample: NDArray[np.int64] | None = None, ious: int = len(IOUS)) -> float:
    """Return the mean average precision over the classes that the sample has, at the first `ious` of IOUS.

    NaN where it has none.
    """
    found = np.array([average_precision(one, sample)[:ious].mean() for one in matches])
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")
