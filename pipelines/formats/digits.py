"""The handwritten digits that scikit-learn ships: 1,797 real scans of 8x8 pixels in 17 levels, 10 classes.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository (test part), CC BY 4.0, through `sklearn.datasets.load_digits`.
"""

import io
from collections.abc import Iterator

from pydantic import Field

from pipelines.formats import Item, Source
from pipelines.params import Section
from pipelines.stage import StageError


class Options(Section):
    """Options of the built-in digits."""

    path: str = Field(min_length=1, description="What DVC watches for a change of the data: this module.")
    size: int = Field(ge=8, le=512, description="Edge in pixels to which the 8x8 scans are brought (bicubic).")


def read(options: Options, task: str) -> Source:
    """Return the digits as PNG images of `options.size` pixels. Raises StageError on another task."""
    if task != "classification":
        raise StageError(
            f"params.yaml: data.source.format: 'digits' gives classes of images, which task '{task}' lacks"
        )
    return Source(_items(options.size), [str(n) for n in range(10)])


def _items(size: int) -> Iterator[Item]:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
        file = io.BytesIO()
        pixels.resize((size, size), Image.Resampling.BICUBIC).save(file, "PNG")
        yield Item(f"{label}/{number:04d}.png", data=file.getvalue(), label=str(label))
