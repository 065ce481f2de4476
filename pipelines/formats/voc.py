"""Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, and the splits of `ImageSets/Main/*.txt` where they stand.

Format: M. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, development kit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines import formats
from pipelines.formats import SPLITS, Box, Item, Source
from pipelines.params import Section
from pipelines.stage import StageError


class Options(Section):
    """Options of a Pascal VOC folder."""

    path: str = Field(min_length=1, description="The folder that holds Annotations and JPEGImages.")


def read(options: Options, task: str) -> Source:
    """List the images with their boxes. Raises StageError when the folders are missing or the task is not detection."""
    if task != "detection":
        raise StageError(f"params.yaml: data.source.format: 'voc' gives boxes, which task '{task}' does not take")
    root = formats.root_of(options.path)
    for name in ("Annotations", "JPEGImages"):
        if not (root / name).is_dir():
            raise StageError(f"params.yaml: data.source.path: '{root}' has no folder '{name}'; is it Pascal VOC?")
    return Source(_items(root, _splits(root)))


def _splits(root: Path) -> dict[str, set[str]]:
    """Return the splits in which each image stands; `trainval` is the union of two and says nothing new."""
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        name = f"ImageSets/Main/{split}.txt"
        if (root / name).exists():
            for line in formats.text(root, name, "path").splitlines():
                if words := line.split():
                    found.setdefault(words[0], set()).add(split)
    return found


def _items(root: Path, splits: dict[str, set[str]]) -> Iterator[Item]:
    described = set()
    for annotation in formats.walk(root, root / "Annotations"):
        if annotation.problem:
            yield annotation
        elif annotation.path.lower().endswith(".xml"):
            stem = Path(annotation.path).stem
            item = _item(root, annotation, splits.get(stem, set()))
            described.add(item.path)
            yield item
    for image in formats.walk(root, root / "JPEGImages"):
        if image.problem:
            yield image
        elif formats.is_image(image.path) and image.path not in described:
            yield Item(image.path, problem="an image without an annotation; an image with no object needs an empty one")


def _item(root: Path, annotation: Item, splits: set[str]) -> Item:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, parse

    assert annotation.file is not None
    try:
        tree = parse(annotation.file, forbid_dtd=True).getroot()
    except DefusedXmlException:
        return Item(annotation.path, problem="declares a document type or entities, which annotations do not need")
    except (ParseError, ValueError, LookupError) as error:
        return Item(annotation.path, problem=f"not valid XML: {error}")
    except OSError as error:
        return Item(annotation.path, problem=f"cannot be read: {error.strerror}")
    name = (tree.findtext("filename") or "").strip()
    if not name:
        return Item(annotation.path, problem="names no image; it needs a <filename>")
    if len(splits) > 1:
        return Item(f"JPEGImages/{name}", problem=f"stands in the splits {' and '.join(sorted(splits))}; leave it one")
    try:
        boxes = tuple(_box(one) for one in tree.iter("object"))
    except ValueError as error:
        return Item(f"JPEGImages/{name}", problem=f"{annotation.path}: {error}")
    return formats.image_item(root, f"JPEGImages/{name}", split=next(iter(splits), None), boxes=boxes)


def _box(one: Any) -> Box:
    """Return an object's box. VOC counts pixels from 1 and includes the last; a box here starts at 0."""
    label = (one.findtext("name") or "").strip()
    if not label:
        raise ValueError("an <object> has no <name>")
    sides = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        word = one.findtext(f"bndbox/{side}")
        try:
            sides.append(float(word or ""))
        except ValueError:
            raise ValueError(f"box of '{label}': {side} is {word!r}, not a number") from None
    left, top, right, bottom = sides
    if right < left or bottom < top:
        raise ValueError(f"box of '{label}' is reversed: {left:g},{top:g} to {right:g},{bottom:g}")
    return Box(left - 1, top - 1, right - left + 1, bottom - top + 1, label)
