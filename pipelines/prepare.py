"""Brings any source to one form: images in shards and one Parquet index, which all later stages read."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import formats, index, workers
from pipelines.files import write_folder, write_json
from pipelines.formats import SPLITS, Item
from pipelines.inspection import Outcome, inspect
from pipelines.kept import KEPT, Kept, Place, keep
from pipelines.known import KNOWN, Known
from pipelines.params import Section, parse, section, value
from pipelines.splits import TRAIN, Splits, assign, numbers
from pipelines.stage import StageError, run

CHUNK = 32  # items that a process looks at in one go
SHOWN = 3


class Data(Section):
    """Where the images come from. `source` names a format (a file of `pipelines/formats/`) and its options."""

    source: Annotated[dict[str, Any], Field(json_schema_extra={"required": ["format"]})]
    channels: int = Field(ge=1, le=256, description="Channels of each image; others are left out (grey becomes 3).")
    bits: Literal[8, 16, 32] = Field(description="Bits per channel of each image; 32 is floating point.")
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

    Raises StageError when the source has no usable image, or when more than `data.max_rejected` of its files are
    unusable.
    """
    data = section("data", Data)
    task, seed = value("task"), value("seed")
    module, options = source(data)
    found = module.read(options, task)
    rejected: list[dict[str, str]] = []
    with closing(Known(KNOWN)) as known:
        with write_folder(out) as folder:
            spill = folder / "rows.arrow"
            table, counts = _collect(found.items, data, task, folder, spill, rejected, known)
            order = _each_once(table, rejected)
            _check(len(order), rejected, data)
            names = _names(table, task)
            classes = found.classes or sorted(set(names.tolist()))
            splits = np.full(len(table), TRAIN, np.int8)
            splits[order] = _assign(table.take(order).combine_chunks(), task, data.splits, seed)
            index.write(folder / "index.parquet", table, order, np.array(SPLITS)[splits], classes, task)
            described = _describe(table, order, splits, data)
            images = {split: int((splits[order] == n).sum()) for n, split in enumerate(SPLITS)}
            info = {"task": task, "classes": classes, "images": images, "rejected": len(rejected), **described}
            write_json(folder / "dataset.json", info)
            rejected.sort(key=lambda r: (r["path"], r["reason"]))
            write_json(folder / "rejected.json", rejected)
            del table
            spill.unlink()
        keep(out, KEPT)
        known.end_places()
    for one in rejected[:SHOWN]:
        print(f"left out: {_line(one)}")
    print(
        f"{len(order):,} images in {len(classes)} classes; {len(rejected)} left out; "
        f"{counts['read']:,} read, {counts['decoded']:,} decoded"
    )


def _collect(
    items: Iterator[Item],
    data: Data,
    task: str,
    folder: Path,
    spill: Path,
    rejected: list[dict[str, str]],
    known: Known,
) -> tuple[Any, Counter[str]]:
    """Write the shards; return the rows as a table on disk, and how many images had to be read, and decoded."""
    rows, counts = index.Rows(spill, task), Counter[str]()
    cores = len(os.sched_getaffinity(0))
    known.begin_places()
    with (
        index.Shards(folder) as shards,
        ProcessPoolExecutor(cores, initializer=_begin, initargs=(data.channels, data.bits, KNOWN, KEPT)) as pool,
    ):
        for chunk in _each(pool, items, 2 * cores):
            store(chunk, shards, rows, known, rejected)
            counts["read"] += sum(one.read for one in chunk)
            counts["decoded"] += sum(one.fresh is not None for one in chunk)
    return rows.close(), counts


def store(
    chunk: list[Outcome], shards: index.Shards, rows: index.Rows, known: Known, rejected: list[dict[str, str]]
) -> None:
    """Write images to the shards, the rows and the cache; add those that are left out to `rejected`."""
    places = []
    for one in chunk:
        if one.row is None:
            named = {"path": one.path, "reason": one.problem}
            rejected.append({k: v.encode("utf-8", "backslashreplace").decode() for k, v in named.items()})
            continue
        shard, offset = shards.add(one.path, one.payload)
        rows.add({**one.row, "shard": shard, "offset": offset})
        if one.stamp:
            places.append((one.path, one.stamp, Place(one.row["content_hash"], shard, offset, len(one.payload))))
    known.add_places(places)
    known.add([one.fresh for one in chunk if one.fresh])


_of_process: dict[str, Any] = {}


def _begin(channels: int, bits: int, known: Path, kept: Path) -> None:
    workers.begin()
    _of_process.update(channels=channels, bits=bits, known=Known(known), kept=Kept(kept))


def _inspect_all(items: list[Item]) -> list[Outcome]:
    return [inspect(item, **_of_process) for item in items]


def _each(pool: Executor, items: Iterable[Item], ahead: int) -> Iterator[list[Outcome]]:
    """Inspect items in parallel and yield them in their order, chunk by chunk, with at most `ahead` under way."""
    from tqdm import tqdm

    items = iter(items)
    waiting: list[tuple[list[Item], Future[list[Outcome]]]] = []
    with tqdm(desc="prepare", unit=" images", mininterval=0.5) as bar:
        while True:
            while len(waiting) < ahead and (chunk := list(islice(items, CHUNK))):
                waiting.append((chunk, pool.submit(_inspect_all, chunk)))
            if not waiting:
                return
            chunk, future = waiting.pop(0)
            try:
                yield future.result()
            except BrokenProcessPool:
                raise StageError(
                    f"a decoder crashed or ran out of memory between {chunk[0].path} and {chunk[-1].path}; "
                    "look at the files there, and remove the one that is broken"
                ) from None
            bar.update(len(chunk))


def _each_once(table: Any, rejected: list[dict[str, str]]) -> NDArray[np.int64]:
    """Return the rows in the order of their paths; of rows with one path, the first counts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    path = table.column("path")
    keys = pa.table({"path": path, "row": pa.array(np.arange(len(path)))})
    order = pc.sort_indices(keys, sort_keys=[("path", "ascending"), ("row", "ascending")]).to_numpy()
    if len(order) < 2:
        return np.asarray(order, np.int64)
    ordered = path.take(order)
    again = np.r_[False, pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)]
    for place in np.flatnonzero(again):
        splits = [table.column("split")[int(order[n])].as_py() for n in (place - 1, place)]
        between = f" (in {splits[0]} and {splits[1]})" if splits[0] != splits[1] else ""
        reason = f"stands in the source more than once{between}; the first counts, give each image one entry"
        rejected.append({"path": ordered[int(place)].as_py(), "reason": reason})
    return np.asarray(order[~again], np.int64)


def _names(table: Any, task: str) -> NDArray[Any]:
    """Return the names of the classes that stand in the rows."""
    import pyarrow.compute as pc

    if task == "classification":
        column = table.column("label")
    else:
        column = pc.struct_field(pc.list_flatten(table.column("boxes")), "label")
    return np.asarray(pc.drop_null(pc.unique(column)).to_numpy(zero_copy_only=False))


def _assign(table: Any, task: str, shares: Splits, seed: int) -> NDArray[np.int8]:
    hashes = np.frombuffer(b"".join(table.column("pixel_hash").cast("binary").to_pylist()), "S64")
    given = numbers(table.column("split"))
    if task == "classification":
        label = table.column("label").to_numpy()
        return assign(hashes, given, lambda row: [label[row]] if label[row] is not None else [], shares, seed)
    boxes = table.column("boxes")
    return assign(hashes, given, lambda row: [box["label"] for box in boxes[row].as_py()], shares, seed)


def _line(one: dict[str, str]) -> str:
    """Return a rejected file as one line, whatever its name holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{one['path']}: {one['reason']}")


def _check(images: int, rejected: list[dict[str, str]], data: Data) -> None:
    total = images + len(rejected)
    shown = "; ".join(_line(r) for r in rejected[:SHOWN])
    if not images:
        raise StageError(f"the source has no usable image; see data.source in params.yaml; {shown}".removesuffix("; "))
    if len(rejected) > data.max_rejected * total:
        raise StageError(
            f"{len(rejected)} of {total} files are unusable, more than data.max_rejected allows; "
            f"mend or remove them: {shown}"
        )


def _describe(table: Any, order: NDArray[np.int64], splits: NDArray[np.int8], data: Data) -> dict[str, Any]:
    """Return channels, bits, and the mean and std of each channel over the pixels of the training images."""
    column = lambda name: table.column(name).combine_chunks()  # noqa: E731
    channels, bits = column("channels").to_numpy(), data.bits
    alike = order[channels[order] == data.channels]
    if not len(alike):
        raise StageError(f"no image has {data.channels} channels; set data.channels in params.yaml to what they have")
    train = alike[splits[alike] == TRAIN]
    train = train if len(train) else alike
    pixels = column("width").to_numpy().astype(np.float64) * column("height").to_numpy()
    weights = pixels[train] / pixels[train].sum()
    means, stds = (
        column(name).take(train).flatten().to_numpy().reshape(-1, data.channels)
        for name in ("channel_mean", "channel_std")
    )
    mean = weights @ means
    variance = weights @ (stds**2 + means**2) - mean**2
    return {
        "channels": data.channels,
        "bits": bits,
        "mean": [round(float(m), 6) for m in mean],
        "std": [round(float(max(v, 1e-6)) ** 0.5, 6) for v in variance],
    }


if __name__ == "__main__":
    run(main)
