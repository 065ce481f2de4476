"""Brings any source to one form: images in shards and one Parquet index, which all later stages read."""

import hashlib
import io
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines import formats, images
from pipelines.files import sha256_bytes, write_folder, write_json
from pipelines.formats import SPLITS, Item
from pipelines.params import Section, parse, section, value
from pipelines.stage import StageError, run

SHARD_BYTES = 64 * 2**20


class Splits(Section):
    """Shares of the images for a source that brings no splits; what is left is for training."""

    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training(self) -> "Splits":
        if self.val + self.test >= 1:
            raise ValueError("val and test together leave nothing for training; make their sum less than 1")
        return self


class Data(Section):
    """Where the images come from. `source` names a format (a file of `pipelines/formats/`) and its options."""

    source: Annotated[dict[str, Any], Field(json_schema_extra={"required": ["format"]})]
    splits: Splits
    max_rejected: float = Field(ge=0, lt=1, description="Share of unusable files above which the stage fails.")


def source(data: Data) -> tuple[Any, Any]:
    """Return the module of the source's format and its typed options. Raises StageError on an unknown format."""
    options = dict(data.source)
    name = options.pop("format", None)
    if name not in formats.names():
        known = ", ".join(formats.names())
        raise StageError(f"params.yaml: data.source.format: no such format {name!r}; have: {known}")
    module = formats.load(name)
    return module, parse(options, module.Options, "data.source")


def main(out: Path) -> None:
    """Write `out`: `images-NNNNN.tar`, `index.parquet`, `dataset.json` and `rejected.json`.

    Raises StageError when the source has no usable image, when more than `data.max_rejected` of its files are
    unusable, or when two items have one path.
    """
    data = section("data", Data)
    task, seed = value("task"), value("seed")
    module, options = source(data)
    found = module.read(options, task)
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []
    with write_folder(out) as folder:
        with _Shards(folder) as shards, ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
            for item, (row, payload, reason) in _each(pool, found.items):
                if row is None:
                    rejected.append({"path": item.path, "reason": reason})
                    continue
                row["shard"], row["offset"] = shards.add(row["path"], payload)
                row.update(split=item.split, label=item.label, boxes=item.boxes)
                rows.append(row)
        write_json(folder / "rejected.json", rejected)
        _check(rows, rejected, data)
        classes = found.classes or sorted({n for row in rows for n in _labels(row)})
        assign_splits(rows, data.splits, seed)
        _write_index(folder / "index.parquet", rows, classes, task)
        write_json(folder / "dataset.json", _describe(rows, rejected, classes, task))
    print(f"{len(rows):,} images in {len(classes)} classes; {len(rejected)} left out")


def inspect(item: Item) -> tuple[dict[str, Any] | None, bytes, str]:
    """Return what the index says of one image, its bytes, and the reason why it is unusable, if it is.

    Brightness is the mean over all channels, as a share of full scale. Sharpness is the variance of the
    Laplacian of the mean channel (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000).
    """
    try:
        payload = item.data if item.data is not None else _read(item)
        pixels = images.decode(payload)
    except images.ImageError as error:
        return None, b"", str(error)
    except OSError as error:
        return None, b"", f"cannot be read: {error.strerror}"
    height, width, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    scaled = pixels.astype(np.float32) / (2**bits - 1)
    return (
        {
            "path": item.path,
            "bytes": len(payload),
            "width": width,
            "height": height,
            "channels": channels,
            "bits": bits,
            "content_hash": sha256_bytes(payload),
            "pixel_hash": hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
            "channel_mean": scaled.mean((0, 1), dtype=np.float64).tolist(),
            "channel_std": scaled.std((0, 1), dtype=np.float64).tolist(),
            "brightness": float(scaled.mean(dtype=np.float64)),
            "sharpness": _sharpness(scaled.mean(2)),
        },
        payload,
        "",
    )


def assign_splits(rows: list[dict[str, Any]], shares: Splits, seed: int) -> None:
    """Set `split` of the rows that have none: stratified by class, and images of equal pixels in one split.

    The order within a class is that of the SHA-256 of the seed and the pixels, so that it does not depend on
    names, and an image added later moves few of the others.
    """
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["pixel_hash"]].append(row)
    strata: dict[tuple[str, ...], list[list[dict[str, Any]]]] = defaultdict(list)
    for group in groups.values():
        given = next((row["split"] for row in group if row["split"]), None)
        if given:
            for row in group:
                row["split"] = row["split"] or given
            continue
        names = Counter(n for row in group for n in _labels(row))
        strata[(min(names, key=lambda n: (-names[n], n)),) if names else ()].append(group)
    for stratum in strata.values():
        stratum.sort(key=lambda group: sha256_bytes(f"{seed}:{group[0]['pixel_hash']}".encode()))
        for place, group in enumerate(stratum):
            share = (place + 0.5) / len(stratum)
            split = "test" if share < shares.test else "val" if share < shares.test + shares.val else "train"
            for row in group:
                row["split"] = split


class _Shards:
    """Writes images one after the other into uncompressed tar files of about SHARD_BYTES."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = -1
        self.tar: tarfile.TarFile | None = None

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        if self.tar:
            self.tar.close()

    def add(self, path: str, payload: bytes) -> tuple[str, int]:
        """Add one image; return the name of its shard and the offset of its bytes in it."""
        if self.tar is None or self.tar.offset > SHARD_BYTES:
            if self.tar:
                self.tar.close()
            self.number += 1
            name = self.folder / f"images-{self.number:05d}.tar"
            self.tar = tarfile.open(name, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed in __exit__
        info = tarfile.TarInfo(path)
        info.size = len(payload)
        self.tar.addfile(info, io.BytesIO(payload))
        padded = -(-len(payload) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return f"images-{self.number:05d}.tar", self.tar.offset - padded


def _each(pool: Executor, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Inspect items in parallel and yield them in their order, with a bounded number under way."""
    from tqdm import tqdm

    source = iter(items)
    waiting: list[tuple[list[Item], Future[list[Any]]]] = []
    with tqdm(desc="prepare", unit=" images", mininterval=0.5) as bar:
        while chunk := list(islice(source, 64)):
            waiting.append((chunk, pool.submit(_inspect_all, chunk)))
            if len(waiting) > 4 * (os.cpu_count() or 1):
                yield from _finish(waiting.pop(0), bar)
        while waiting:
            yield from _finish(waiting.pop(0), bar)


def _finish(work: tuple[list[Item], Future[list[Any]]], bar: Any) -> Iterator[tuple[Item, Any]]:
    chunk, future = work
    yield from zip(chunk, future.result(), strict=True)
    bar.update(len(chunk))


def _inspect_all(items: list[Item]) -> list[Any]:
    return [inspect(item) for item in items]


def _read(item: Item) -> bytes:
    assert item.file is not None
    return item.file.read_bytes()


def _labels(row: dict[str, Any]) -> list[str]:
    if row["boxes"] is not None:
        return [box.label for box in row["boxes"]]
    return [row["label"]] if row["label"] is not None else []


def _sharpness(grey: NDArray[np.float32]) -> float:
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var(dtype=np.float64))


def _check(rows: list[dict[str, Any]], rejected: list[dict[str, str]], data: Data) -> None:
    total = len(rows) + len(rejected)
    shown = "; ".join(f"{r['path']}: {r['reason']}" for r in rejected[:3])
    if not rows:
        raise StageError(f"the source has no usable image; see data.source in params.yaml {shown}".rstrip())
    if len(rejected) > data.max_rejected * total:
        raise StageError(
            f"{len(rejected)} of {total} files are unusable, more than data.max_rejected allows; "
            f"mend or remove them: {shown}"
        )
    twice = [path for path, count in Counter(row["path"] for row in rows).items() if count > 1]
    if twice:
        raise StageError(f"{twice[0]}: stands in the source {len(twice) + 1} times; give each image one path")


def _write_index(path: Path, rows: list[dict[str, Any]], classes: list[str], task: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    ids = {name: number for number, name in enumerate(classes)}
    fields = [
        pa.field("path", pa.string()),
        pa.field("split", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("bits", pa.int32()),
        pa.field("content_hash", pa.string()),
        pa.field("pixel_hash", pa.string()),
        pa.field("channel_mean", pa.list_(pa.float64())),
        pa.field("channel_std", pa.list_(pa.float64())),
        pa.field("brightness", pa.float64()),
        pa.field("sharpness", pa.float64()),
    ]
    columns: dict[str, list[Any]] = {f.name: [row[f.name] for row in rows] for f in fields}
    if task == "classification":
        fields += [pa.field("label", pa.int32())]
        columns["label"] = [ids.get(row["label"], -1) for row in rows]
    else:
        struct = pa.struct([(n, pa.float64()) for n in ("x", "y", "width", "height")] + [("label", pa.int32())])
        fields += [pa.field("boxes", pa.list_(struct))]
        columns["boxes"] = [
            [{**asdict(box), "label": ids.get(box.label, -1)} for box in row["boxes"] or ()] for row in rows
        ]
    order = sorted(range(len(rows)), key=lambda n: rows[n]["path"])
    table = pa.table(columns, schema=pa.schema(fields)).take(order)
    parquet.write_table(table, path, compression="zstd", row_group_size=65536)


def _describe(
    rows: list[dict[str, Any]], rejected: list[dict[str, str]], classes: list[str], task: str
) -> dict[str, Any]:
    """Return the dataset's description. Mean and std of each channel are over the pixels of the training images."""
    channels = Counter(row["channels"] for row in rows).most_common(1)[0][0]
    train = [row for row in rows if row["split"] == "train" and row["channels"] == channels] or rows
    weights = np.array([row["width"] * row["height"] for row in train], np.float64)
    weights /= weights.sum()
    means = np.array([row["channel_mean"] for row in train])
    mean = weights @ means
    variance = weights @ (np.array([row["channel_std"] for row in train]) ** 2 + means**2) - mean**2
    return {
        "task": task,
        "classes": classes,
        "channels": channels,
        "bits": max(row["bits"] for row in rows),
        "mean": [round(float(m), 6) for m in mean],
        "std": [round(float(max(v, 1e-6)) ** 0.5, 6) for v in variance],
        "images": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "rejected": len(rejected),
    }


if __name__ == "__main__":
    run(main)
