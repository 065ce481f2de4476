"""Reads what `prepare` wrote: the index, and images by their row in it."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines import images
from pipelines.files import read_json
from pipelines.params import Section
from pipelines.preprocess import Preprocess
from pipelines.stage import StageError


class Input(Section):
    """What the model takes: height and width in pixels, and how an image is brought to them."""

    height: int = Field(ge=8, le=8192)
    width: int = Field(ge=8, le=8192)
    resize: Literal["stretch", "letterbox"]
    antialias: bool = Field(
        default=True,
        description="Smooth an image that is shrunk, as Pillow does; false: bilinear as by OpenCV, and so by YOLO.",
    )
    mean: list[float] | None = Field(
        default=None,
        min_length=1,
        description="Per channel, in units of full scale: (pixel / full - mean) / std; without it, that of the data.",
    )
    std: list[float] | None = Field(default=None, min_length=1, description="As mean; give both, or none.")

    @model_validator(mode="after")
    def _both(self) -> "Input":
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std: give one of each per channel, or neither")
        if self.std and min(self.std) <= 0:
            raise ValueError("std: is to be above 0")
        return self


class Dataset:
    """The images, splits and labels of one prepared data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: dict[str, Any] = read_json(folder / "dataset.json")
        self.classes: list[str] = self.info["classes"]

    @cached_property
    def index(self) -> Any:
        """The index as a pyarrow table, sorted by path."""
        from pyarrow import parquet

        return parquet.read_table(self.folder / "index.parquet")

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of the index as an array."""
        return np.asarray(self.index.column(name).to_numpy(zero_copy_only=False))

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of the rows of a split, in the order of their paths."""
        return np.flatnonzero(self.column("split") == split)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class ids of all rows (classification)."""
        return self.column("label").astype(np.int64)

    def boxes(self, row: int) -> NDArray[np.float64]:
        """Return the boxes of one image (detection): N x 5, left, top, width and height in pixels, and class id.

        What sticks out of the image is cut off; the index has the boxes as they were annotated.
        """
        found = self.index.column("boxes")[row].as_py()
        values = np.array([[b["x"], b["y"], b["width"], b["height"], b["label"]] for b in found], np.float64)
        boxes = values.reshape(-1, 5)
        size = [self.index.column(side)[row].as_py() for side in ("width", "height")]
        ends = np.clip(boxes[:, :2] + boxes[:, 2:4], 0, size)
        boxes[:, :2] = np.clip(boxes[:, :2], 0, size)
        boxes[:, 2:4] = ends - boxes[:, :2]
        return boxes

    def labels_of(self, row: int) -> NDArray[np.int64]:
        """Return the class ids of one image: of its label, or of each of its boxes."""
        if self.info["task"] == "classification":
            return self.labels[row : row + 1]
        return self.boxes(row)[:, 4].astype(np.int64)

    def stratum(self, row: int) -> int:
        """Return the class by which a row is stratified: its label, or the first box's class (-1: none)."""
        labels = self.labels_of(row)
        return int(labels[0]) if len(labels) else -1

    @cached_property
    def _places(self) -> list[tuple[str, int, int]]:
        columns = (self.index.column(n).to_pylist() for n in ("shard", "offset", "bytes"))
        return list(zip(*columns, strict=True))

    def encoded(self, row: int) -> bytes:
        """Return the encoded bytes of one image."""
        shard, offset, size = self._places[row]
        with (self.folder / shard).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def image(self, row: int) -> NDArray[Any]:
        """Return one image, H x W x C, in the dtype in which it is stored."""
        return images.decode_image(self.encoded(row))

    def preprocess(self, size: Input) -> Preprocess:
        """Return how an image of this dataset becomes the input of a model of the given size.

        Raises StageError when a mean is declared, but not one for each channel.
        """
        mean, std = size.mean or self.info["mean"], size.std or self.info["std"]
        if len(mean) != self.info["channels"]:
            raise StageError(
                f"params.yaml: input.mean: has {len(mean)} values; the data have {self.info['channels']} channels"
            )
        return Preprocess(
            channels=self.info["channels"],
            height=size.height,
            width=size.width,
            resize=size.resize,
            full_scale=1.0 if self.info["bits"] == 32 else float(2 ** self.info["bits"] - 1),
            mean=tuple(mean),
            std=tuple(std),
            antialias=size.antialias,
        )
