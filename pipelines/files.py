"""Files written whole, canonical JSON, and content hashes."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends well.

    Nothing is left behind when the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        os.replace(part, path)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, and put it in the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.mkdir()
        yield part
        if path.is_dir() and not path.is_symlink():
            os.replace(path, Path(folder) / "old")
        os.replace(part, path)


def to_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, two-space indent, a final newline, and null for NaN and infinities."""
    return json.dumps(_finite(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as canonical JSON (see `to_json`), whole or not at all."""
    with write_file(path) as part:
        part.write_text(to_json(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """Return one SHA-256 for a folder: that of the sorted lines `<sha256>  <relative path>` of its files."""
    lines = [f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in tree(folder)]
    return sha256_bytes("".join(lines).encode())


def tree(folder: Path) -> list[Path]:
    """Return the files below `folder`, in the order of their relative POSIX paths."""
    return sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in tree(path))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, whole or not at all; times and modes are not copied."""
    with write_file(target) as part:
        shutil.copyfile(source, part)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
