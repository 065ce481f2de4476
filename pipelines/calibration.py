"""The frozen calibration subset, as the quantizers read it."""

import csv
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data import Dataset
from pipelines.files import read_json
from pipelines.overlap import copies
from pipelines.preprocess import Preprocess
from pipelines.stage import StageError

RANGES = ("minmax", "percentile", "entropy", "mse")


class Calibration:
    """Images in a fixed order, ready for the model, and the activation ranges measured on them."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        self.digest: str = self.manifest["digest"]
        self.preprocess = Preprocess.from_dict(self.manifest["preprocess"])
        self.dataset = Dataset(data)

    def __len__(self) -> int:
        return len(self.manifest["images"])

    @cached_property
    def rows(self) -> list[int]:
        """The rows of the images in the dataset. Raises StageError when one is not there."""
        places = {name: row for row, name in enumerate(self.dataset.column("content_hash"))}
        for image in self.manifest["images"]:
            if image["content_hash"] not in places:
                raise StageError(f"{image['path']}: is in the calibration manifest but not in the dataset")
        return [places[image["content_hash"]] for image in self.manifest["images"]]

    def overlap(self) -> int:
        """Return how many of the images are copies of a test image."""
        return len({one for one, _ in copies(self.dataset, self.rows, self.dataset.rows("test").tolist())})

    def inputs(self, size: int = 1) -> Iterator[NDArray[np.float32]]:
        """Yield batches float32 N x C x H x W in the manifest's order, reading the images as it goes."""
        for start in range(0, len(self.rows), size):
            yield np.stack([self.preprocess(self.dataset.image(row)) for row in self.rows[start : start + size]])

    @cached_property
    def activations(self) -> dict[str, dict[str, tuple[float, float]]]:
        """The lowest and highest value of each tensor by each method of RANGES: tensor -> method -> (low, high)."""
        with (self.folder / "activations.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {r["tensor"]: {m: (float(r[f"{m}_low"]), float(r[f"{m}_high"])) for m in RANGES} for r in rows}
