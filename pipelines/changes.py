"""Where the accuracy went: what one model says of the test images, and what another made of it."""

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import evaluation, pictures, tasks
from pipelines.data import Dataset
from pipelines.files import read_json
from pipelines.images import ImageError
from pipelines.pictures import Objects
from pipelines.preprocess import Preprocess

THUMBNAIL = 160  # pixels of the longer edge
SEEN = 0.05  # the score of an object that counts where two detectors are compared
MOVED = 0.005  # a smaller distance between two models on an image is not worth showing
Outputs = list[NDArray[Any]]


@dataclass(frozen=True)
class Said:
    """What a model says of one image, for people, and whether that is right (None: in part)."""

    text: str
    score: str
    right: bool | None


@dataclass(frozen=True)
class Shown:
    """A test image with what two models say of it.

    `image` is a data URI; of detectors it is that of `picture`, a JPEG that shows both beside each other.
    """

    path: str
    image: str
    truth: str
    before: Said
    after: Said
    picture: bytes | None = None
    sure: float | None = None  # the score from which on objects are drawn


class Judged:
    """The test split, and the outputs of models on it."""

    def __init__(self, data: Path, onnx: Path, task: str) -> None:
        self.dataset, self.name, self.task = Dataset(data), task, tasks.load(task)
        self.rows = self.dataset.rows("test")
        preprocess = Preprocess.from_dict(read_json(onnx / "preprocess.json"))
        postprocess = read_json(onnx / "model.json").get("postprocess")
        self.truth = self.task.truth(self.dataset, self.rows, preprocess, postprocess)

    def read(self, path: Path) -> Outputs | None:
        """Return the outputs in a file; None when there is none, or it is of other images."""
        if not path.is_file():
            return None
        found = evaluation.read_outputs(path)
        return found if all(len(output) == len(self.rows) for output in found) else None

    def counts(self) -> dict[str, int]:
        """Return how many test images each class has."""
        return {name: len(places) for name, places in self.task.slices(self.truth, self.dataset.classes).items()}

    def moves(self, before: Outputs, after: Outputs) -> list[tuple[str, str, str, int]]:
        """Return label before, label after, `gained`, `lost` or `still wrong`, and on how many images, most first."""
        if self.name != "classification":
            return []
        classes = self.dataset.classes
        pairs = zip(before[0].argmax(1), after[0].argmax(1), self.truth, strict=True)
        found = Counter(
            (classes[b], classes[a], "gained" if a == t else "lost" if b == t else "still wrong")
            for b, a, t in pairs
            if a != b
        )
        return [(*move, n) for move, n in sorted(found.items(), key=lambda f: (-f[1], f[0]))]

    def most_changed(self, before: Outputs, after: Outputs, count: int, short: str) -> list[Shown]:
        """Return the `count` images on which two models differ most, those whose class changed first.

        `short` names the second model on pictures; the first is FP32.
        """
        if self.name == "detection":
            return self._most_changed_boxes(before, after, count, short)
        score = [self._scores(outputs) for outputs in (before, after)]
        distance = self._distance(before, after)
        order = np.lexsort((np.arange(len(distance)), -distance, -np.abs(score[0] - score[1])))[:count]
        return [
            Shown(
                str(self.dataset.column("path")[self.rows[n]]),
                self._thumbnail(int(self.rows[n])),
                ", ".join(dict.fromkeys(self.dataset.classes[c] for c in self.dataset.labels_of(int(self.rows[n])))),
                self._said(before, int(n)),
                self._said(after, int(n)),
            )
            for n in order
            if distance[n] >= MOVED or score[0][n] != score[1][n]
        ]

    def _scores(self, outputs: Outputs) -> NDArray[np.float64]:
        """Return the task metric of each image alone."""
        scorer = self.task.scorer(outputs, self.truth)
        found: NDArray[np.float64] = np.nan_to_num([scorer(np.array([n])) for n in range(len(self.rows))])
        return found

    def _distance(self, before: Outputs, after: Outputs) -> NDArray[np.float64]:
        """Return how far two classifiers are apart on each image: the total variation of the softmax, 0 to 1."""
        shares = [_softmax(outputs[0].astype(np.float64)) for outputs in (before, after)]
        found: NDArray[np.float64] = np.round(np.abs(shares[0] - shares[1]).sum(1) / 2, 9)
        return found

    def _said(self, outputs: Outputs, n: int) -> Said:
        said = tasks.decoder(self.name).decode([outputs[0][n : n + 1]], {"classes": self.dataset.classes})[0]
        return Said(said["label"], f"{100 * said['score']:.1f} %", said["class"] == self.truth[n])

    def _thumbnail(self, row: int) -> str:
        try:
            return thumbnail(self.dataset.image(row))
        except ImageError:
            return ""

    def _most_changed_boxes(self, before: Outputs, after: Outputs, count: int, short: str) -> list[Shown]:
        """Return the images on which the objects of two detectors are furthest apart, drawn."""
        said = [self._objects(outputs) for outputs in (before, after)]
        distance = np.round([pictures.distance(b, a) for b, a in zip(*said, strict=True)], 9)
        order = np.lexsort((np.arange(len(distance)), -distance))[:count]
        sure = pictures.best_score(self.truth.boxes, said[0])
        return [self._drawn(int(n), said[0][n], said[1][n], short, sure) for n in order if distance[n] >= MOVED]

    def _objects(self, outputs: Outputs) -> list[Objects]:
        """Return the objects of each image, in its pixels, of a score of SEEN."""
        wanted = {**self.truth.postprocess, "least": SEEN, "classes": self.dataset.classes}
        said = tasks.decoder(self.name).decode(outputs, wanted, self.truth.preprocess, self.truth.shapes)
        return [one["objects"] for one in said]

    def _drawn(self, n: int, before: Objects, after: Objects, short: str, sure: float) -> Shown:
        row, truth, picture = int(self.rows[n]), self.truth.boxes[n], None
        one, two = ([o for o in objects if o["score"] >= sure] for objects in (before, after))
        try:
            pair = [("FP32", one), (short, two)]
            drawn = pictures.beside(visible(self.dataset.image(row)), truth, self.dataset.classes, pair)
            picture = pictures.jpeg(drawn)
        except ImageError:  # its numbers stand for it
            pass
        kinds = Counter(self.dataset.classes[int(c)] for c in truth[:, 4])
        return Shown(
            str(self.dataset.column("path")[row]),
            f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" if picture else "",
            ", ".join(f"{number} × {name}" for name, number in sorted(kinds.items())),
            Said(str(pictures.compare(truth, one)), "", None),
            Said(str(pictures.compare(truth, two)), "", None),
            picture,
            sure,
        )


def visible(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image H x W x C in 8 bits with three channels, its first, or one.

    Anything but 8 bits is stretched between its 1st and 99th percentile, so that it can be seen at all.
    """
    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown, (1, 99))
        shown = np.clip((shown - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return shown


def thumbnail(pixels: NDArray[Any]) -> str:
    """Return an image H x W x C as a PNG data URI of at most THUMBNAIL pixels, as `visible` shows it."""
    from PIL import Image

    shown = visible(pixels)
    image = Image.fromarray(np.ascontiguousarray(shown if shown.shape[2] == 3 else shown[:, :, 0]))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))
