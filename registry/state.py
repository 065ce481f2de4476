"""What serves on this machine: one small file per model, replaced in one step."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.files import read_json, write_json
from pipelines.stage import StageError
from registry import tracking


@dataclass(frozen=True)
class Release:
    """A version that was rolled out here: its number, its logged model, and the hash of its bundle."""

    version: str
    source: str
    bundle: str


@dataclass(frozen=True)
class State:
    """`current` is what servers load. Until it is `confirmed` by its health check, the last of `history` is good."""

    current: Release
    confirmed: bool
    history: tuple[Release, ...]  # confirmed earlier, oldest first

    def then(self, release: Release) -> "State":
        """Return the state in which `release` is rolled out and not yet confirmed."""
        past = [r for r in (*self.history, *([self.current] if self.confirmed else [])) if r != release]
        return State(release, False, tuple(past))

    def confirm(self) -> "State":
        """Return the state in which the current release is confirmed."""
        return replace(self, confirmed=True)


def folder(model: str) -> Path:
    """Return the folder of a model's state. Raises StageError on a name that is not one of ours."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", model):
        raise StageError(f"{model!r}: no name of a model; it is PROJECT.TARGET")
    return tracking.home() / "live" / model


def bundle_folder(model: str, bundle: str) -> Path:
    """Return where the verified bundle of that hash lies."""
    return folder(model) / "bundles" / bundle


def read(model: str) -> State | None:
    """Return what serves of a model, or None when nothing does."""
    path = folder(model) / "live.json"
    if not path.is_file():
        return None
    raw: dict[str, Any] = read_json(path)
    return State(Release(**raw["current"]), raw["confirmed"], tuple(Release(**r) for r in raw["history"]))


def write(model: str, state: State | None) -> None:
    """Put a state in the place of the one before; None ends the serving."""
    path = folder(model) / "live.json"
    if state is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, asdict(state))


def models() -> list[str]:
    """Return the models of which something serves here."""
    return sorted(p.parent.name for p in (tracking.home() / "live").glob("*/live.json"))
