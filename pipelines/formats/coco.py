"""COCO: JSON files of images, categories and boxes, one for each split.

Format: T.-Y. Lin et al., Microsoft COCO, ECCV 2014; cocodataset.org, Data format (Object Detection).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines import formats
from pipelines.formats import Box, Item, Source
from pipelines.params import Section
from pipelines.stage import StageError

Name = Literal["train", "val", "test", "all"]
USED = {"images", "annotations", "categories", "id", "file_name", "name", "image_id", "category_id", "bbox", "iscrowd"}


class Options(Section):
    """Options of a COCO dataset."""

    path: str = Field(min_length=1, description="The folder that holds all of it; DVC watches it.")
    annotations: dict[Name, str] = Field(min_length=1, description="The JSON of each split, relative to `path`.")
    images: dict[Name, str] = Field(description="The folder of images of each split, relative to `path`.")


def read(options: Options, task: str) -> Source:
    """List the images of the JSON files with their boxes; regions marked `iscrowd` are no boxes of one object.

    Raises StageError when a file is missing or no COCO JSON, when files differ in their categories, or the task
    is not detection.
    """
    if task != "detection":
        raise StageError(f"params.yaml: data.source.format: 'coco' gives boxes, which task '{task}' does not take")
    root = formats.root_of(options.path)
    if set(options.annotations) != set(options.images):
        raise StageError(
            "params.yaml: data.source: 'annotations' and 'images' name different splits; give both the same"
        )
    if "all" in options.annotations and len(options.annotations) > 1:
        raise StageError("params.yaml: data.source.annotations: 'all' stands alone; leave it out, or the splits")
    loaded = {split: _load(root, name) for split, name in options.annotations.items()}
    categories = {split: _categories(root / options.annotations[split], found) for split, found in loaded.items()}
    first = next(iter(categories.values()))
    for split, found in categories.items():
        if found != first:
            name = root / options.annotations[split]
            raise StageError(f"{name}: its categories differ from those of the other splits; make them the same")
    classes = [first[n] for n in sorted(first)]
    return Source(_items(root, options, loaded, first), classes)


def _load(root: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(formats.text(root, name, "annotations"), object_hook=_used)
    except (ValueError, RecursionError) as error:
        raise StageError(f"{root / name}: not valid JSON: {error}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in lists):
        raise StageError(f"{root / name}: no COCO file; it should hold the lists images, annotations and categories")
    return found


def _used(one: dict[str, Any]) -> dict[str, Any]:
    """Return what is used of a JSON object: the outlines of the objects are most of a file."""
    return {key: one[key] for key in one if key in USED}


def _categories(where: Path, found: dict[str, Any]) -> dict[int, str]:
    try:
        named = {int(c["id"]): str(c["name"]) for c in found["categories"]}
    except (KeyError, TypeError, ValueError):
        raise StageError(f"{where}: categories: each needs an id and a name") from None
    if not all(map(formats.is_text, named.values())):
        raise StageError(f"{where}: categories: a name is not UTF-8; write another")
    if not named or len(set(named.values())) != len(found["categories"]):
        raise StageError(f"{where}: categories: ids and names must differ from each other")
    return named


def _items(
    root: Path, options: Options, loaded: dict[Name, dict[str, Any]], categories: dict[int, str]
) -> Iterator[Item]:
    for key, name in options.annotations.items():
        found = loaded.pop(key)  # so that it can be forgotten
        split = None if key == "all" else key
        boxes, problems = _boxes(found["annotations"], categories)
        ids = Counter(str(one.get("id")) if isinstance(one, dict) else "" for one in found["images"])
        for number, one in enumerate(found["images"]):
            if not isinstance(one, dict) or not isinstance(one.get("file_name"), str) or "id" not in one:
                yield Item(f"{name}#images/{number}", problem="names no image; it needs an id and a file_name")
                continue
            path, image = f"{options.images[key]}/{one['file_name']}", str(one["id"])
            if ids[image] > 1:
                yield Item(path, problem=f"its id {image} is that of {ids[image]} images; give each its own")
            elif image in problems:
                yield Item(path, problem=f"{name}: {problems[image]}")
            else:
                yield formats.image_item(root, path, split=split, boxes=tuple(boxes.get(image, ())))
        for image in sorted((set(boxes) | set(problems)) - set(ids)):
            yield Item(f"{name}#image_id/{image}", problem="boxes of an image that the file does not list")


def _boxes(annotations: list[Any], categories: dict[int, str]) -> tuple[dict[str, list[Box]], dict[str, str]]:
    """Return the boxes of each image id, and what is wrong with the annotations of an image id."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    problems: dict[str, str] = {}
    for one in annotations:
        image = str(one.get("image_id")) if isinstance(one, dict) else "none"
        try:
            if one.get("iscrowd"):
                continue
            if one["category_id"] not in categories:
                problems[image] = f"annotation {one.get('id')}: category {one['category_id']} is not in categories"
                continue
            x, y, width, height = (float(value) for value in one["bbox"])
            boxes[image].append(Box(x, y, width, height, categories[one["category_id"]]))
        except (AttributeError, KeyError, TypeError, ValueError):
            problems[image] = f"annotation {one.get('id') if isinstance(one, dict) else one!r}: no category_id and bbox"
    return boxes, problems
