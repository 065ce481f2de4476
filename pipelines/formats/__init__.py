"""Data formats: one file each, named in `data.source.format`. A format lists items; it decodes nothing.

Each module has `Options(Section)`, with a `path` that DVC watches, and `read(options, task) -> Source`.
"""

import importlib
import os
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pipelines.stage import StageError

SPLITS = ("train", "val", "test")
SPELLINGS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy"}


@dataclass(frozen=True)
class Box:
    """An object: left, top, width and height, and the name of its class.

    In pixels of the image turned upright; or, where the item says `relative`, in shares of its width and height.
    """

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
    item has `label`, a detection item has `boxes` (empty where the image shows no object). An item that the
    format already knows to be unusable has `problem`, the reason, for people.
    """

    path: str
    file: Path | None = None
    data: bytes | None = None
    split: str | None = None
    label: str | None = None
    boxes: tuple[Box, ...] | None = None
    relative: bool = False
    problem: str | None = None


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


def root_of(path: str) -> Path:
    """Return the source's folder. Raises StageError when it is none."""
    root = Path(path)
    if not root.is_dir():
        raise StageError(f"params.yaml: data.source.path: no folder '{root}'")
    return root


def text(root: Path, name: str, key: str) -> str:
    """Return a text file of the source. Raises StageError when it is missing, outside, or not UTF-8."""
    found = inside(root, name)
    if found is None:
        raise StageError(f"params.yaml: data.source.{key}: '{name}' leaves the folder '{root}'; move it in there")
    try:
        return found.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise StageError(f"{root / name}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise StageError(f"params.yaml: data.source.{key}: '{root / name}' cannot be read: {error.strerror}") from None


def inside(root: Path, name: str) -> Path | None:
    """Return `root / name`, or None where that leaves `root`: by `..`, as an absolute path, or by a link."""
    if "\0" in name or "\\" in name:
        return None
    path = root / name
    try:
        return path if path.resolve().is_relative_to(root.resolve()) else None
    except (OSError, RuntimeError):  # a link that leads to itself
        return None


def is_text(name: str) -> bool:
    """Say whether a name can be written as UTF-8: those from JSON and of files may hold half of a character."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_item(root: Path, name: str, **about: object) -> Item:
    """Return the item of an image that an annotation names; with a problem where there is no such image."""
    if not is_text(name):
        return Item(name, problem="its name is not UTF-8; rename it")
    path = Path(os.path.normpath(name)).as_posix()
    found = inside(root, name)
    if found is None:
        return Item(name, problem="its path leaves the folder of the source; keep images inside, without links")
    if not found.is_file():
        return Item(path, problem="no such image; its annotation has nothing to describe")
    return Item(path, file=found, **about)  # type: ignore[arg-type]


def walk(root: Path, top: Path) -> Iterator[Item]:
    """Yield the files below `top`, in the order of their names, as items with paths relative to `root`.

    Hidden files and folders are passed over. Names that are not UTF-8 and links that leave `root` give items
    with a problem. Memory holds the names of one folder at a time.
    """
    with os.scandir(top) as entries:
        ordered = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in ordered:
        path = Path(entry.path)
        shown = path.relative_to(root).as_posix()
        if not is_text(shown):
            readable = os.fsencode(shown).decode("utf-8", "backslashreplace")
            yield Item(readable, problem="its name is not UTF-8; rename it")
        elif entry.is_dir(follow_symlinks=False):
            yield from walk(root, path)
        elif entry.is_symlink() and inside(root, shown) is None:
            yield Item(shown, problem="a link that leaves the folder of the source; put the file itself there")
        elif entry.is_symlink() and not path.is_file():
            yield Item(shown, problem="a link that leads to no file; put the file itself there")
        elif entry.is_file():
            yield Item(shown, file=path)


def is_image(path: str) -> bool:
    """Say whether a file's name ends like that of an image."""
    return os.path.splitext(path)[1].lower() in SUFFIXES
