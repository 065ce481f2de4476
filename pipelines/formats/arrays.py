"""NumPy arrays: images N x H x W or N x H x W x C with N labels, in `.npy` files or members of an `.npz`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines import formats
from pipelines.formats import Item, Source
from pipelines.params import Section
from pipelines.stage import StageError


class Pair(Section):
    """Images and their labels: `FILE.npy`, or `FILE.npz:MEMBER`, relative to the source's `path`."""

    images: str = Field(min_length=1)
    labels: str = Field(min_length=1)


class Options(Section):
    """Options of arrays."""

    path: str = Field(min_length=1, description="The folder that holds the arrays; DVC watches it.")
    arrays: dict[Literal["train", "val", "test", "all"], Pair] = Field(min_length=1)


def read(options: Options, task: str) -> Source:
    """List the images of the arrays. Labels are numbers or names; numbers keep their order.

    Raises StageError when an array is missing, holds Python objects, has another shape, or is not as long as its
    labels, or when the task is not classification.
    """
    if task != "classification":
        raise StageError(
            f"params.yaml: data.source.format: 'arrays' gives classes of images, which task '{task}' lacks"
        )
    if "all" in options.arrays and len(options.arrays) > 1:
        raise StageError("params.yaml: data.source.arrays: 'all' stands alone; leave it out, or the splits")
    root = formats.root_of(options.path)
    pairs = {split: _pair(root, split, pair) for split, pair in options.arrays.items()}
    values = sorted({value for _, labels in pairs.values() for value in labels.tolist()})
    return Source(_items(pairs), [str(value) for value in values])


def _pair(root: Path, split: str, pair: Pair) -> tuple[Any, Any]:
    key = f"params.yaml: data.source.arrays.{split}"
    images, labels = _array(root, pair.images, f"{key}.images"), _array(root, pair.labels, f"{key}.labels")
    if images.ndim not in (3, 4):
        raise StageError(f"{key}.images: shape {images.shape}; images N x H x W or N x H x W x C are wanted")
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise StageError(f"{key}.labels: shape {labels.shape} of {labels.dtype}; N whole numbers or names are wanted")
    if len(images) != len(labels):
        raise StageError(f"{key}: {len(images)} images but {len(labels)} labels; give one of each")
    return images, labels


def _array(root: Path, name: str, key: str) -> Any:
    import numpy as np

    file, _, member = name.partition(":")
    where = formats.inside(root, file)
    if where is None or not where.is_file():
        raise StageError(f"{key}: no file '{file}' inside '{root}'")
    try:
        found = np.load(where, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            if member not in found.files:
                raise StageError(f"{key}: '{file}' has no member '{member}'; have: {', '.join(found.files)}")
            return found[member]
    except (OSError, ValueError, EOFError) as error:
        raise StageError(f"{key}: '{file}' cannot be read: {error}") from None


def _items(pairs: dict[Any, tuple[Any, Any]]) -> Iterator[Item]:
    import numpy as np

    for split, (images, labels) in pairs.items():
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(image), (1, 0), allow_pickle=False)
            given = None if split == "all" else split
            yield Item(f"{split}/{number:08d}.npy", data=file.getvalue(), split=given, label=str(label))
