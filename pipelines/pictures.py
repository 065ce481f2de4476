"""Draws what two detectors say of one image beside each other, and tells how far apart they are.

What is right is drawn solid and blue, what is false solid and orange, what is missed dashed and pink: colours that
colour-blind people tell apart (Okabe and Ito, Color Universal Design, 2008), and lines that need no colour.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines import tasks

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Objects = Sequence[dict[str, Any]]  # those of `decode.decode`

SAME = 0.5  # IoU from which on two boxes are of one object
EDGE = 360  # pixels to which the longer edge of an image is brought
HEAD, GAP, TEXT = 22, 6, 12  # pixels: the line above each half, the space between them, the letters
RIGHT, FALSE, MISSED = (86, 180, 233), (230, 159, 0), (255, 130, 190)
DASH = 5


@dataclass(frozen=True)
class Found:
    """Which objects of a prediction are right, and which boxes of the truth are missed, by their places."""

    right: tuple[int, ...]
    false: tuple[int, ...]
    missed: tuple[int, ...]

    def __str__(self) -> str:
        """Say it for people: `5 of 6 found, 1 false`."""
        return f"{len(self.right)} of {len(self.right) + len(self.missed)} found, {len(self.false)} false"


def compare(truth: NDArray[np.float64], objects: Objects) -> Found:
    """Hold a prediction against the truth, N x 5: left, top, width and height in pixels, and class id.

    An object is right when it covers, by an IoU of SAME, a box of its class that no surer one has covered.
    """
    pairs = dict(_pairs(objects, truth))
    missed = sorted(set(range(len(truth))) - set(pairs.values()))
    return Found(tuple(sorted(pairs)), tuple(n for n in range(len(objects)) if n not in pairs), tuple(missed))


def best_score(truths: Sequence[NDArray[np.float64]], said: Sequence[Objects]) -> float:
    """Return the score from which on a detector's objects have the best F1 over some images (1: none is right).

    Scores of two detectors, or of one after little training, are not alike: a fixed score would show all or nothing.
    """
    scores, right = [], []
    for truth, objects in zip(truths, said, strict=True):
        hits = set(compare(truth, objects).right)
        scores += [o["score"] for o in objects]
        right += [n in hits for n in range(len(objects))]
    if not any(right):
        return 1.0
    order = np.argsort(-np.array(scores), kind="stable")
    ranked, hit = np.array(scores)[order], np.cumsum(np.array(right)[order])
    f1 = 2 * hit / (np.arange(1, len(hit) + 1) + sum(map(len, truths)))
    f1[np.flatnonzero(ranked[:-1] == ranked[1:])] = 0  # a score cannot part what has the same
    return float(ranked[f1.argmax()])


def distance(before: Objects, after: Objects) -> float:
    """Return how far two predictions are apart: 0 where they are equal.

    An object that only one of them has counts by its score; one that both have by the difference of the scores, and
    by how little of the two boxes is shared (1 - IoU), times the mean score.
    """
    boxes = _boxes(before)
    pairs = dict(_pairs(after, boxes))
    shared = _iou(_boxes(after), boxes)
    total = sum(after[n]["score"] for n in range(len(after)) if n not in pairs)
    total += sum(before[n]["score"] for n in set(range(len(before))) - set(pairs.values()))
    for mine, other in pairs.items():
        one, two = before[other]["score"], after[mine]["score"]
        total += abs(one - two) + (1 - shared[mine, other]) * (one + two) / 2
    return float(total)


def beside(
    pixels: NDArray[Any], truth: NDArray[np.float64], classes: Sequence[str], said: Sequence[tuple[str, Objects]]
) -> "Image":
    """Return a picture of an image H x W x C (8 bits, 1 or 3 channels) for each of `said`, left to right.

    `said` has names, such as FP32 and INT8, and predictions; above each stands the name and how much it found. Small
    images are enlarged by whole factors, so that their pixels stay what they are.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = pixels.shape[:2]
    scale = EDGE / max(height, width)
    scale = float(int(scale)) if scale >= 2 else scale
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    shown = Image.fromarray(np.ascontiguousarray(pixels.squeeze() if pixels.shape[2] == 1 else pixels))
    shown = shown.convert("RGB").resize((wide, high), how)
    font = ImageFont.load_default(TEXT)
    heads = [f"{name}: {compare(truth, objects)}" for name, objects in said]
    half = max(wide, *(int(font.getlength(head)) + 1 for head in heads))
    sheet = Image.new("RGB", (len(said) * half + (len(said) - 1) * GAP, high + HEAD), (24, 24, 24))
    for place, (head, (_, objects)) in enumerate(zip(heads, said, strict=True)):
        picture = shown.copy()
        draw = ImageDraw.Draw(picture)
        _objects(draw, truth, objects, classes, scale, font)
        left = place * (half + GAP)
        sheet.paste(picture, (left + (half - wide) // 2, HEAD))
        ImageDraw.Draw(sheet).text((left, (HEAD - TEXT) // 2 - 1), head, (255, 255, 255), font)
    return sheet


def jpeg(picture: "Image") -> bytes:
    """Return a picture as the bytes of a JPEG file, its colours as fine as its brightness: lines stay sharp."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, subsampling=0, optimize=True)
    return file.getvalue()


def _objects(
    draw: "ImageDraw", truth: NDArray[np.float64], objects: Objects, classes: Sequence[str], scale: float, font: Any
) -> None:
    found = compare(truth, objects)
    for n in found.missed:
        _box(draw, truth[n, :4] * scale, MISSED, classes[int(truth[n, 4])], font, dashed=True)
    for places, colour in ((found.false, FALSE), (found.right, RIGHT)):
        for n in sorted(places, key=lambda n: objects[n]["score"]):  # the surest, and what is right, on top
            label = f"{objects[n]['label']} {100 * objects[n]['score']:.0f}"
            _box(draw, _boxes([objects[n]])[0, :4] * scale, colour, label, font, dashed=False)


def _box(
    draw: "ImageDraw", box: NDArray[np.float64], colour: tuple[int, int, int], label: str, font: Any, dashed: bool
) -> None:
    """Draw a box (left, top, width, height), dark beneath its colour so that it stands out of any image."""
    left, top, right, bottom = (round(float(v)) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=4)
    if dashed:
        for x in range(left, right, 2 * DASH):
            end = min(x + DASH, right)
            draw.line([(x, top), (end, top)], colour, 2)
            draw.line([(x, bottom), (end, bottom)], colour, 2)
        for y in range(top, bottom, 2 * DASH):
            end = min(y + DASH, bottom)
            draw.line([(left, y), (left, end)], colour, 2)
            draw.line([(right, y), (right, end)], colour, 2)
    else:
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    above = top > TEXT + 4  # the label hides no edge of its box
    place, anchor = ((max(left, 0), top - 3), "lb") if above else ((max(left, 0), bottom + 3), "lt")
    draw.rectangle(draw.textbbox(place, label, font, anchor), fill=(0, 0, 0))
    draw.text(place, label, colour, font, anchor)


def _boxes(objects: Objects) -> NDArray[np.float64]:
    """Return N x 5: left, top, width, height and class id."""
    rows = [[o[k] for k in ("x", "y", "width", "height", "class")] for o in objects]
    return np.array(rows, np.float64).reshape(-1, 5)


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    # By name, as a task's modules are found: the report of another task does not depend on this one.
    found: NDArray[np.float64] = tasks.decoder("detection").iou(one[:, :4], other[:, :4])
    return found


def _pairs(objects: Objects, boxes: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return which object is which box of its class: the surest choose first, each the free box that it covers best."""
    mine = _boxes(objects)
    shared = _iou(mine, boxes)
    shared[mine[:, None, 4] != boxes[None, :, 4]] = 0
    pairs = []
    for n in sorted(range(len(objects)), key=lambda n: -objects[n]["score"]):
        if len(boxes) and shared[n].max() >= SAME:
            best = int(shared[n].argmax())
            pairs.append((n, best))
            shared[:, best] = 0
    return pairs
