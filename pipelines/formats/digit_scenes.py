"""Scenes for detection that need no download: handwritten digits set into crops of two photographs.

Both come with scikit-learn: the digits of `formats/digits.py` (Alpaydin and Kaynak, CC BY 4.0), and `china.jpg` and
`flower.jpg` (CC BY 2.0, by "danielbuechele" and "dmahendra"; see sklearn/datasets/images/README.txt). Everything else
is drawn from the seed. A digit and a crop stand in one split only: scenes of the test split show digits that no model
has seen, on a part of the photographs that no other split shows.
"""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.formats import Box, Item, Source
from pipelines.params import Section
from pipelines.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHARES = {"val": 0.1, "test": 0.2, "train": 0.7}  # of the digits, of the width of the photographs, and of the scenes
APART = 2  # pixels between two digits, so that their boxes do not touch
TRIES = 20  # to find a free place


class Options(Section):
    """Options of the built-in scenes."""

    path: str = Field(min_length=1, description="What DVC watches for a change of the data: this module.")
    seed: int = Field(ge=0, description="Other seeds give other scenes.")
    images: int = Field(ge=10, le=1_000_000, description="Scenes in all: 70 % train, 10 % val, 20 % test.")
    size: int = Field(ge=32, le=420, description="Edge of a scene in pixels; the photographs have 640 x 427.")
    digits: int = Field(ge=1, le=100, description="Digits in a scene at most; each number from 0 on is as likely.")
    smallest: int = Field(ge=8, description="Height of the smallest digits in pixels.")
    largest: int = Field(ge=8, description="Height of the largest.")


def read(options: Options, task: str) -> Source:
    """Return the scenes as PNG images with boxes. Raises StageError on another task, or sizes that do not fit."""
    if task != "detection":
        raise StageError(f"params.yaml: data.source.format: 'digit_scenes' gives boxes, which task '{task}' lacks")
    if not options.smallest <= options.largest <= options.size:
        raise StageError(
            f"params.yaml: data.source: smallest {options.smallest}, largest {options.largest} and size "
            f"{options.size} must grow in this order"
        )
    return Source(_items(options), [str(n) for n in range(10)])


def _items(options: Options) -> Iterator[Item]:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_images

    photographs = load_sample_images().images
    digits = load_digits()
    scans, labels = digits.images / 16, digits.target
    order = np.random.default_rng(options.seed).permutation(len(scans))
    first, edge = 0.0, 0
    for place, (split, share) in enumerate(SHARES.items()):
        end = first + share
        mine = order[round(first * len(order)) : round(end * len(order))]
        last = round(end * options.images)
        for number in range(edge, last):
            generator = np.random.default_rng([options.seed, place, number])
            photograph = photographs[generator.integers(len(photographs))]
            crop = _crop(photograph, (first, end), options.size, generator)
            boxes = _draw(crop, scans, labels, mine, options, generator)
            file = io.BytesIO()
            Image.fromarray(crop.round().astype(np.uint8)).save(file, "PNG")
            yield Item(f"{split}/{number:06d}.png", data=file.getvalue(), split=split, boxes=tuple(boxes))
        first, edge = end, last


def _crop(
    photograph: "NDArray[Any]", between: tuple[float, float], size: int, generator: "np.random.Generator"
) -> "NDArray[np.float64]":
    """Return a square of a photograph, from the columns that belong to the split, scaled to `size` pixels."""
    import numpy as np
    from PIL import Image

    height, width = photograph.shape[:2]
    left, right = (round(share * width) for share in between)
    edge = int(generator.integers(min(48, right - left), min(right - left, height, size) + 1))
    x, y = int(generator.integers(left, right - edge + 1)), int(generator.integers(0, height - edge + 1))
    part = Image.fromarray(photograph[y : y + edge, x : x + edge])
    if generator.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC), np.float64)


def _draw(
    crop: "NDArray[np.float64]",
    scans: "NDArray[np.float64]",
    labels: "NDArray[np.int64]",
    mine: "NDArray[np.int64]",
    options: Options,
    generator: "np.random.Generator",
) -> list[Box]:
    """Write digits into the crop, each in a colour and strength of its own, and return their boxes."""
    import numpy as np
    from PIL import Image

    boxes: list[Box] = []
    taken = np.zeros(crop.shape[:2], bool)
    for _ in range(int(generator.integers(0, options.digits + 1))):
        digit = int(mine[generator.integers(len(mine))])
        edge = int(generator.integers(options.smallest, options.largest + 1))
        angle = float(generator.uniform(-12, 12))
        ink = Image.fromarray((scans[digit] * 255).round().astype(np.uint8)).resize((edge, edge), 3)
        mask = np.asarray(ink.rotate(angle, Image.Resampling.BICUBIC), np.float64) / 255
        rows, columns = (np.flatnonzero((mask > 0.25).any(axis)) for axis in (1, 0))
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = mask.shape
        for _ in range(TRIES):
            y, x = (int(generator.integers(0, options.size - side + 1)) for side in (height, width))
            around = taken[max(y - APART, 0) : y + height + APART, max(x - APART, 0) : x + width + APART]
            if not around.any():
                taken[y : y + height, x : x + width] = True
                under = crop[y : y + height, x : x + width]
                share = generator.uniform(0.75, 1.0) * mask[:, :, None]
                under += share * (_colour(under, generator) - under)
                boxes.append(Box(x, y, width, height, str(labels[digit])))
                break
    return boxes


def _colour(under: "NDArray[np.float64]", generator: "np.random.Generator") -> "NDArray[np.float64]":
    """Return a colour that can be seen on what lies under it: light on dark, dark on light."""
    tint = generator.uniform(0, 70, 3)
    return 255 - tint if under.mean() < 128 else tint
