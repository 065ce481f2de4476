"""Data formats: one file each, named in `data.source.format`. A format lists items; it decodes nothing.

Each module has `Options(Section)` and `read(options, task) -> Source`.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Box:
    """An object: left, top, width and height in pixels of the image as stored, and the name of its class."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Item:
    """One image of a source.

    `path` is relative to the source, unique, in POSIX form. The encoded image is in `file`, or in `data`
    where the source is no folder. `split` is one of SPLITS where the source gives one. A classification
    item has `label`, a detection item has `boxes` (empty where the image shows no object).
    """

    path: str
    file: Path | None = None
    data: bytes | None = None
    split: str | None = None
    label: str | None = None
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True)
class Source:
    """What a format found: the class names in the order of their ids (None: sorted names), and the items."""

    items: Iterator[Item]
    classes: list[str] | None = None


def names() -> list[str]:
    """Return the names of all formats."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import the module of a format; the name must be one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}")
