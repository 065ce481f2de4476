"""Where the accuracy went: what one model says of the test images, and what another made of it."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import evaluation, tasks
from pipelines.data import Dataset
from pipelines.files import read_json
from pipelines.images import ImageError
from pipelines.preprocess import Preprocess

THUMBNAIL = 160  # pixels of the longer edge
COLOURS = ("#4da3ff", "#ff9d3a")  # before, after
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
    """A test image with what two models say of it; `image` is a data URI."""

    path: str
    image: str
    truth: str
    before: Said
    after: Said


class Judged:
    """The test split, and the outputs of models on it."""

    def __init__(self, data: Path, onnx: Path, task: str) -> None:
        self.dataset, self.name, self.task = Dataset(data), task, tasks.load(task)
        self.rows = self.dataset.rows("test")
        self.preprocess = Preprocess.from_dict(read_json(onnx / "preprocess.json"))
        postprocess = read_json(onnx / "model.json").get("postprocess")
        self.truth = self.task.truth(self.dataset, self.rows, self.preprocess, postprocess)

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

    def most_changed(self, before: Outputs, after: Outputs, count: int) -> list[Shown]:
        """Return the `count` images on which two models differ most, those whose result changed first."""
        score = [self._scores(outputs) for outputs in (before, after)]
        distance = self._distance(before, after)
        order = np.lexsort((np.arange(len(distance)), -distance, -np.abs(score[0] - score[1])))[:count]
        return [
            Shown(
                str(self.dataset.column("path")[self.rows[n]]),
                self._thumbnail(int(self.rows[n]), [self._objects(o, int(n)) for o in (before, after)]),
                ", ".join(dict.fromkeys(self.dataset.classes[c] for c in self.dataset.labels_of(int(self.rows[n])))),
                *(self._said(outputs, int(n), float(s[n])) for outputs, s in zip((before, after), score, strict=True)),
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
        """Return how far two models are apart on each image.

        For classification the total variation of the softmax, 0 to 1; else the mean difference of all outputs.
        """
        if self.name == "classification":
            shares = [_softmax(outputs[0].astype(np.float64)) for outputs in (before, after)]
            found: NDArray[np.float64] = np.round(np.abs(shares[0] - shares[1]).sum(1) / 2, 9)
            return found
        parts = [
            np.abs(b.astype(np.float64) - a).reshape(len(b), -1).mean(1) for b, a in zip(before, after, strict=True)
        ]
        return np.asarray(np.round(np.sum(parts, 0), 9), np.float64)

    def _said(self, outputs: Outputs, n: int, score: float) -> Said:
        if self.name == "classification":
            said = tasks.decoder(self.name).decode([outputs[0][n : n + 1]], {"classes": self.dataset.classes})[0]
            return Said(said["label"], f"{100 * said['score']:.1f} %", said["class"] == self.truth[n])
        labels = ", ".join(str(o["label"]) for o in self._objects(outputs, n)) or "nothing"
        return Said(labels, f"{100 * score:.1f} % {self.task.METRIC}", None)

    def _objects(self, outputs: Outputs, n: int) -> list[dict[str, Any]]:
        """Return the objects that a detector is sure of in an image; none of a classifier."""
        if self.name != "detection":
            return []
        postprocess = {**self.truth.postprocess, "least": self.task.SURE, "classes": self.dataset.classes}
        one = [output[n : n + 1] for output in outputs]
        (found,) = tasks.decoder(self.name).decode(one, postprocess, self.preprocess, [self.truth.shapes[n]])
        return list(found["objects"])

    def _thumbnail(self, row: int, objects: list[list[dict[str, Any]]]) -> str:
        try:
            return thumbnail(self.dataset.image(row), objects)
        except ImageError:
            return ""


def thumbnail(pixels: NDArray[Any], objects: Sequence[list[dict[str, Any]]] = ()) -> str:
    """Return an image H x W x C as a PNG data URI of at most THUMBNAIL pixels: grey, or its first three channels.

    The boxes of `objects`, one list for each model, are drawn side by side where there are any, in a colour for each.
    Anything but 8 bits is stretched between its 1st and 99th percentile, so that it can be seen at all.
    """
    from PIL import Image

    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown, (1, 99))
        shown = np.clip((shown - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    if any(objects):
        image = _side_by_side(image, objects, image.width / pixels.shape[1])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _side_by_side(image: Any, objects: Sequence[list[dict[str, Any]]], scale: float) -> Any:
    """Return the image once for each model, with its boxes and labels; `scale` leads to pixels of the image."""
    from PIL import Image, ImageDraw

    wide = Image.new("RGB", (image.width * len(objects), image.height))
    for place, (boxes, colour) in enumerate(zip(objects, COLOURS, strict=False)):
        part = image.convert("RGB")
        draw = ImageDraw.Draw(part)
        for box in boxes:
            left, top = box["x"] * scale, box["y"] * scale
            draw.rectangle([left, top, left + box["width"] * scale, top + box["height"] * scale], outline=colour)
            draw.text((left + 2, top), box["label"], fill=colour)
        wide.paste(part, (image.width * place, 0))
    return wide


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))
