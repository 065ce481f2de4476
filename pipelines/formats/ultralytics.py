"""Ultralytics datasets: a `data.yaml` with class names and splits; boxes in `labels/*.txt`, or class folders.

Format: Ultralytics documentation, Datasets (Object Detection, Image Classification).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from pipelines import formats
from pipelines.formats import SPLITS, SUFFIXES, Box, Item, Source
from pipelines.formats.folder import of_classes
from pipelines.params import Section
from pipelines.stage import StageError


class Options(Section):
    """Options of an Ultralytics dataset."""

    path: str = Field(min_length=1, description="The folder that holds all of it; DVC watches it.")
    yaml: str = Field(min_length=1, description="The data.yaml, relative to `path`.")


def read(options: Options, task: str) -> Source:
    """List the images of every split that the file names.

    Raises StageError when the file is missing or wrong, or a folder that it names is missing or outside `path`.
    """
    root = formats.root_of(options.path)
    where = root / options.yaml
    try:
        found = yaml.safe_load(formats.text(root, options.yaml, "yaml"))
    except yaml.YAMLError as error:
        raise StageError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(found, dict):
        raise StageError(f"{where}: holds no mapping; it should name 'train', 'val' and 'names'")
    classes = _classes(where, found.get("names"))
    tops = {split: _places(root, where, found, split) for split in SPLITS if found.get(split)}
    if not tops:
        raise StageError(f"{where}: names no split; give it 'train' and 'val'")
    if task == "classification":
        return Source(_of_folders(root, tops, classes), classes)
    return Source(_of_labels(root, tops, classes), classes)


def _classes(where: Path, names: Any) -> list[str]:
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list) or not names or len({str(n) for n in names}) != len(names):
        raise StageError(f"{where}: names: a list of different class names, or a mapping from 0 on, is wanted")
    return [str(n) for n in names]


def _places(root: Path, where: Path, found: dict[str, Any], split: str) -> list[Path]:
    """Return the folders or lists of a split. As with Ultralytics, `path` may not exist and `../` may be too much."""
    words = found[split] if isinstance(found[split], list) else [found[split]]
    bases = [where.parent / str(found.get("path") or ""), where.parent]
    places = []
    for word in map(str, words):
        tries = [base / w for base in bases for w in (word, word.removeprefix("../"))]
        near = [Path(os.path.normpath(t)) for t in tries]
        place = next((p for p in near if p.exists() and formats.inside(root, os.path.relpath(p, root))), None)
        if place is None:
            raise StageError(f"{where}: {split}: no folder or list '{word}' inside '{root}'; move it in there")
        places.append(place)
    return places


def _of_folders(root: Path, tops: dict[str, list[Path]], classes: list[str]) -> Iterator[Item]:
    for split, places in tops.items():
        for place in places:
            for item in of_classes(root, place, split):
                known = item.label in classes or item.problem
                yield item if known else Item(item.path, problem=f"class '{item.label}' is not in names")


def _of_labels(root: Path, tops: dict[str, list[Path]], classes: list[str]) -> Iterator[Item]:
    for split, places in tops.items():
        for place in places:
            images = formats.walk(root, place) if place.is_dir() else _listed(root, place)
            for image in images:
                if image.problem:
                    yield image
                elif formats.is_image(image.path):
                    yield _item(root, image, split, classes)
            if place.is_dir():
                yield from _lonely(root, place)


def _listed(root: Path, file: Path) -> Iterator[Item]:
    """Yield the images that a text file lists, one path a line, relative to it (`./`) or to `root`."""
    for line in formats.text(root, os.path.relpath(file, root), "yaml").splitlines():
        if name := line.strip():
            base = file.parent if name.startswith("./") else root
            yield formats.image_item(root, os.path.relpath(base / name, root))


def _label_name(path: str) -> str:
    """Return where the labels of an image stand: the last `images` folder of its path becomes `labels`."""
    head, found, tail = f"/{path}".rpartition("/images/")
    name = f"{head}/labels/{tail}" if found else f"/{path}"
    return os.path.splitext(name)[0].lstrip("/") + ".txt"


def _lonely(root: Path, place: Path) -> Iterator[Item]:
    """Yield the label files of a folder that have no image."""
    shown = place.relative_to(root).as_posix()
    labels = root / _label_name(f"{shown}/x").rpartition("/")[0]
    if labels == place or not labels.is_dir():
        return
    for item in formats.walk(root, labels):
        stem = place / os.path.splitext(os.path.relpath(root / item.path, labels))[0]
        if item.path.endswith(".txt") and not any(
            stem.with_name(stem.name + case(suffix)).exists() for suffix in SUFFIXES for case in (str, str.upper)
        ):
            yield Item(item.path, problem="labels without an image; remove the file or add the image")


def _item(root: Path, image: Item, split: str, classes: list[str]) -> Item:
    """Return an image with its boxes; without a label file it shows no object."""
    name = _label_name(image.path)
    found = formats.inside(root, name)
    if found is None:
        return Item(image.path, problem=f"{name} is a link that leaves the folder of the source")
    boxes = []
    try:
        lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
        for number, line in enumerate(lines, 1):
            if line.strip():
                boxes.append(_box(line.split(), number, classes))
    except (OSError, ValueError) as error:
        return Item(image.path, problem=f"{name}: {error}")
    return Item(image.path, file=image.file, split=split, boxes=tuple(boxes), relative=True)


def _box(words: list[str], line: int, classes: list[str]) -> Box:
    """Return a line's box. After the class stand centre x and y, width and height, or a polygon, whose hull counts."""
    try:
        number, values = int(float(words[0])), [float(word) for word in words[1:]]
    except (OverflowError, ValueError):
        raise ValueError(f"line {line}: {' '.join(words)!r} is not a class id and numbers") from None
    if float(words[0]) != number or not 0 <= number < len(classes):
        raise ValueError(f"line {line}: class {words[0]}; names has 0 to {len(classes) - 1}")
    if len(values) == 4:
        x, y, width, height = values
        return Box(x - width / 2, y - height / 2, width, height, classes[number])
    if len(values) < 6 or len(values) % 2:
        raise ValueError(
            f"line {line}: {len(values)} numbers after the class; 4, or the pairs of a polygon, are wanted"
        )
    xs, ys = values[::2], values[1::2]
    return Box(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys), classes[number])
