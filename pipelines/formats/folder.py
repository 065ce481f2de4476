"""Image folders: one folder per class, or `train/`, `val/` and `test/` with one folder per class in each."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from pipelines.formats import SPLITS, Item, Source
from pipelines.params import Section
from pipelines.stage import StageError


class Options(Section):
    """Options of an image folder."""

    path: str = Field(min_length=1, description="The folder, relative to the project or absolute.")


def read(options: Options, task: str) -> Source:
    """List the images of the folder; the class of each is the name of its folder.

    Raises StageError when the folder is missing or has no class folders.
    """
    root = Path(options.path)
    if not root.is_dir():
        raise StageError(f"params.yaml: data.source.path: no folder '{root}'")
    tops = _folders(root)
    given = [t for t in tops if t.name in SPLITS]
    if given and len(given) == len(tops):
        classes = sorted({c.name for t in given for c in _folders(t)})
    else:
        classes = [t.name for t in tops]
        given = []
    if not classes:
        raise StageError(f"params.yaml: data.source.path: '{root}' has no folders; give each class a folder of images")
    return Source(_items(root, given), classes)


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _items(root: Path, splits: list[Path]) -> Iterator[Item]:
    for top in splits or [root]:
        for folder in _folders(top):
            for file in sorted(folder.rglob("*")):
                if file.is_file() and not file.name.startswith("."):
                    split = top.name if splits else None
                    yield Item(file.relative_to(root).as_posix(), file=file, split=split, label=folder.name)
