"""Freezes the calibration subset, and measures the range of every activation on it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipelines import plots, ranges
from pipelines.calibration import Calibration
from pipelines.data import Dataset
from pipelines.files import read_json, sha256_bytes, write_folder, write_json
from pipelines.overlap import copies
from pipelines.params import section, value
from pipelines.stage import run


def main(data: Path, onnx: Path, out: Path) -> None:
    """Write `out`: `manifest.json`, `activations.csv` and `histograms-NN.png`.

    Tensors are streamed: two passes, one batch in memory, whatever the number of images.
    """
    options = section("calibrate", ranges.Calibrate)
    with write_folder(out) as folder:
        preprocess = read_json(onnx / "preprocess.json")
        chosen = manifest(Dataset(data), options.images, value("seed"), preprocess)
        write_json(folder / "manifest.json", chosen)
        histograms = ranges.collect(onnx / "pruned.onnx", Calibration(data, folder), options.bins)
        rows = [ranges.describe(name, *histogram, options.percentile) for name, histogram in histograms.items()]
        ranges.write_csv(folder / "activations.csv", rows)
        plots.histograms(folder, histograms, rows)
    print(f"{len(rows)} tensors measured on {len(chosen['images'])} images")
    if chosen["left_out"]:
        print(f"left out as copies of test images: {', '.join(chosen['left_out'])}")


def manifest(dataset: Dataset, count: int, seed: int, preprocess: dict[str, Any]) -> dict[str, Any]:
    """Choose `count` training images, in turn from each class, in the order of the hash of seed and content.

    A copy of a test image is not chosen: on it, calibration would see the test.
    """
    strata: dict[int, list[int]] = defaultdict(list)
    hashes, paths = dataset.column("content_hash"), dataset.column("path")
    for row in sorted(dataset.rows("train"), key=lambda r: sha256_bytes(f"{seed}:{hashes[r]}".encode())):
        strata[dataset.stratum(row)].append(row)
    turns = sorted((place, stratum, row) for stratum, rows in strata.items() for place, row in enumerate(rows))
    chosen: list[int] = []
    left_out: list[int] = []
    waiting, test = [row for *_, row in turns], dataset.rows("test").tolist()
    while waiting and len(chosen) < count:
        some, waiting = waiting[: count - len(chosen)], waiting[count - len(chosen) :]
        copied = {one for one, _ in copies(dataset, some, test)}
        chosen += [row for row in some if row not in copied]
        left_out += [row for row in some if row in copied]
    images = [{"path": str(paths[row]), "content_hash": str(hashes[row])} for row in chosen]
    digest = sha256_bytes(json.dumps([[i["content_hash"] for i in images], preprocess], sort_keys=True).encode())
    left = [str(paths[row]) for row in left_out]
    return {"images": images, "left_out": left, "preprocess": preprocess, "digest": digest}


if __name__ == "__main__":
    run(main)
