"""Looks at a folder of data, and says what it is in the words of `params.yaml`."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from pipelines import formats, images, tasks
from pipelines.files import read_json
from pipelines.formats import SPELLINGS, SPLITS, Item
from pipelines.formats.folder import folders
from pipelines.params import parse
from pipelines.stage import StageError

LOOKED = 200  # images that are decoded, evenly spread
LISTED = 1_000_000  # items that are listed at most
COLUMNS = {"image": ("image", "file", "filename", "path"), "label": ("label", "class", "category"), "split": ("split",)}


@dataclass(frozen=True)
class Survey:
    """What was found: the entry `data.source`, the task, and what most images are like.

    `smallest` is the number of images of the smallest class (detection: boxes), by split where the source has splits;
    `edge` the shortest and the longest edge in pixels, `side` the median of the shorter edges.
    """

    source: dict[str, Any]
    task: str
    classes: list[str]
    images: int
    splits: dict[str, int]
    smallest: int
    largest: int
    channels: int
    bits: int
    edge: tuple[int, int]
    side: int
    odd: int  # of the images that were decoded, those that are unlike the others or broken
    looked: int


def survey(data: Path, path: str) -> Survey:
    """Return what the folder `data` holds; `path` is how the project names it. Raises StageError when it is nothing."""
    if not data.is_dir():
        raise StageError(f"{data}: no such folder; give the one that holds your images")
    source, task = _source(data)
    if task not in tasks.names():
        raise StageError(f"{data}: its images have boxes, for {task}; this version trains {', '.join(tasks.names())}")
    module = formats.load(source["format"])
    options = {k: v for k, v in source.items() if k != "format"}
    found = module.read(parse({**options, "path": str(data)}, module.Options, "data.source"), task)
    items = [item for item in islice(found.items, LISTED) if not item.problem]
    if not items:
        raise StageError(f"{data}: {source['format']}: no image found; known are {images.KNOWN}")
    labels = Counter(label for item in items for label in _labels(item))
    classes = found.classes or sorted(labels)
    step = max(len(items) // LOOKED, 1)
    shapes = [shape for item in items[::step][:LOOKED] if (shape := _shape(item))]
    if not shapes:
        raise StageError(f"{data}: none of the images can be read; known are {images.KNOWN}")
    (channels, bits), usual = Counter((c, b) for _, _, c, b in shapes).most_common(1)[0]
    edges = sorted(min(height, width) for height, width, *_ in shapes)
    return Survey(
        source={"format": source["format"], "path": path, **{k: v for k, v in options.items() if k != "path"}},
        task=task,
        classes=classes,
        images=len(items),
        splits={s: n for s in SPLITS if (n := sum(item.split == s for item in items))},
        smallest=min((labels[name] for name in classes), default=0),
        largest=max(labels.values(), default=0),
        channels=channels,
        bits=bits,
        edge=(edges[0], max(max(height, width) for height, width, *_ in shapes)),
        side=edges[len(edges) // 2],
        odd=min(len(items[::step]), LOOKED) - usual,
        looked=min(len(items[::step]), LOOKED),
    )


def _source(data: Path) -> tuple[dict[str, Any], str]:
    """Return the entry `data.source`, without `path`, and the task, by the files that lie in the folder."""
    for look in (_ultralytics, _voc, _coco, _table, _arrays, _folder):
        if found := look(data):
            return found
    raise StageError(
        f"{data}: no known form of data; give each class a folder of images, or see docs/data.md for the formats"
    )


def _ultralytics(data: Path) -> tuple[dict[str, Any], str] | None:
    for path in sorted([*data.glob("*.yaml"), *data.glob("*.yml")]):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(found, dict) and "names" in found and any(found.get(split) for split in SPLITS):
            boxes = any(p.is_dir() for p in data.rglob("labels"))
            return {"format": "ultralytics", "yaml": path.name}, "detection" if boxes else "classification"
    return None


def _voc(data: Path) -> tuple[dict[str, Any], str] | None:
    held = all((data / name).is_dir() for name in ("Annotations", "JPEGImages"))
    return ({"format": "voc"}, "detection") if held else None


def _coco(data: Path) -> tuple[dict[str, Any], str] | None:
    annotations, places = {}, {}
    for path in sorted([*data.glob("*.json"), *data.glob("annotations/*.json")]):
        try:
            found = read_json(path)
        except ValueError:
            continue
        if not isinstance(found, dict) or not {"images", "annotations", "categories"} <= set(found):
            continue
        split = next((s for word, s in SPELLINGS.items() if word in path.stem.lower()), "all")
        names = [str(image.get("file_name")) for image in found["images"][:1]]
        place = next((p for p in [data, *folders(data)] if names and (p / names[0]).is_file()), data)
        annotations[split], places[split] = path.relative_to(data).as_posix(), place.relative_to(data).as_posix()
    if "all" in annotations:
        annotations, places = {"all": annotations["all"]}, {"all": places["all"]}
    return ({"format": "coco", "annotations": annotations, "images": places}, "detection") if annotations else None


def _table(data: Path) -> tuple[dict[str, Any], str] | None:
    for path in sorted([*data.glob("*.csv"), *data.glob("*.parquet")]):
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                heads = next(csv.reader(file), [])
        else:
            from pyarrow import parquet

            heads = parquet.read_schema(path).names
        names = {key: next((h for h in heads if h.lower() in words), None) for key, words in COLUMNS.items()}
        if names["image"] and names["label"]:
            return {"format": "table", "table": path.name, **names}, "classification"
    return None


def _arrays(data: Path) -> tuple[dict[str, Any], str] | None:
    arrays = {}
    for split in (*SPLITS, "all"):
        pairs = [(f"{split}_images.npy", f"{split}_labels.npy"), (f"x_{split}.npy", f"y_{split}.npy")]
        pairs += [("images.npy", "labels.npy"), ("x.npy", "y.npy")] if split == "all" else []
        for pixels, labels in pairs:
            if (data / pixels).is_file() and (data / labels).is_file():
                arrays[split] = {"images": pixels, "labels": labels}
    return ({"format": "arrays", "arrays": arrays}, "classification") if arrays else None


def _folder(data: Path) -> tuple[dict[str, Any], str] | None:
    return ({"format": "folder"}, "classification") if folders(data) else None


def _labels(item: Item) -> Iterator[str]:
    yield from [item.label] if item.label is not None else [box.label for box in item.boxes or ()]


def _shape(item: Item) -> tuple[int, int, int, int] | None:
    """Return height, width, channels and bits of an image, or None when it cannot be read."""
    read: Callable[[], bytes] = (lambda: item.data or b"") if item.file is None else item.file.read_bytes
    try:
        pixels = images.decode_image(read())
    except (images.ImageError, OSError):
        return None
    height, width, channels = pixels.shape
    return height, width, channels, pixels.dtype.itemsize * 8
