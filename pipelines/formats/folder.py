"""Image folders: one folder per class, or `train/`, `val/` and `test/` with one folder per class in each."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from pipelines import formats
from pipelines.formats import SPELLINGS, Item, Source
from pipelines.params import Section
from pipelines.stage import StageError


class Options(Section):
    """Options of an image folder."""

    path: str = Field(min_length=1, description="The folder, relative to the project or absolute.")


def read(options: Options, task: str) -> Source:
    """List the files of the folder; the class of each is the name of its folder.

    Raises StageError when the folder is missing, has no class folders, or the task is not classification.
    """
    if task != "classification":
        raise StageError(
            f"params.yaml: data.source.format: 'folder' gives classes of images, which task '{task}' lacks"
        )
    root = formats.root_of(options.path)
    tops = folders(root)
    given = [t for t in tops if t.name in SPELLINGS]
    if given and len(given) == len(tops):
        classes = sorted({c.name for t in given for c in folders(t)})
    else:
        classes, given = [t.name for t in tops], []
    if not classes:
        raise StageError(f"params.yaml: data.source.path: '{root}' has no folders; give each class a folder of images")
    return Source(_items(root, given), classes)


def _items(root: Path, splits: list[Path]) -> Iterator[Item]:
    for top in splits or [root]:
        yield from of_classes(root, top, SPELLINGS[top.name] if splits else None)


def of_classes(root: Path, top: Path, split: str | None) -> Iterator[Item]:
    """Yield the images of the class folders in `top`, with paths relative to `root`."""
    for folder in folders(top):
        for item in formats.walk(root, folder):
            yield replace(item, split=split, label=folder.name)


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, in the order of their names, without hidden ones and links."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))
