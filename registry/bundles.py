"""Fetches the bundle of a model version out of MLflow's artifact store, trusting nothing on the way."""

import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.stage import StageError
from registry import evidence

LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]+)/?")
MOST_FILES = 1000


def model_id(source: str) -> str:
    """Return the logged model behind a version's `source`. Raises StageError when it has none of its own."""
    found = LOGGED_MODEL.fullmatch(source)
    if not found:
        raise StageError(f"it was not registered by Quantmill, its source is {source}; run: quantmill sync")
    return found[1]


def fetch(client: Any, source: str, out: Path) -> None:
    """Copy the bundle of the version with this `source` into the new folder `out`. Raises StageError."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        location = client.get_logged_model(model_id(source)).artifact_location
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise StageError(f"its logged model {source} is gone") from None
    copy(get_artifact_repository(location), "", out)


def copy(repository: Any, root: str, out: Path) -> None:
    """Copy `ROOT/data/BUNDLE` of an MLflow artifact repository into the new folder `out`, file by file.

    Names come from the server, so each is held against the folder that was asked for. Raises StageError.
    """
    base = f"{root}/data" if root else "data"
    folders = [f for f in repository.list_artifacts(base) if f.is_dir]
    if len(folders) != 1:
        raise StageError("it holds no bundle")
    bundle = folders[0].path
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        files, size = _walk(repository, _inside(bundle, base))
        if size > evidence.LARGEST:
            raise StageError(f"the bundle has {size:,} bytes; at most {evidence.LARGEST:,} are taken")
        for name in files:
            target = Path(scratch) / "bundle" / PurePosixPath(name).relative_to(bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            got = repository.download_artifacts(name, dst_path=scratch)
            shutil.move(got, target)
        (Path(scratch) / "bundle").replace(out)


def _walk(repository: Any, folder: str) -> tuple[list[str], int]:
    files: list[str] = []
    size = 0
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        for found in repository.list_artifacts(current):
            name = _inside(found.path, current)
            if found.is_dir:
                waiting.append(name)
            else:
                files.append(name)
                size += found.file_size or 0
        if len(files) + len(waiting) > MOST_FILES:
            raise StageError(f"the bundle has more than {MOST_FILES} files")
    return sorted(files), size


def _inside(name: str, folder: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or path.parent != PurePosixPath(folder):
        raise StageError(f"{name!r} leads out of the bundle")
    return name
