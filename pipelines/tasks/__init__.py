"""Tasks: one folder each, named in `task`. A task knows its losses, how outputs are decoded, and its metrics."""

import importlib
import pkgutil
from types import ModuleType

from pipelines.stage import StageError


def names() -> list[str]:
    """Return the names of all tasks."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import the module of a task. Raises StageError on an unknown name."""
    if name not in names():
        raise StageError(f"params.yaml: task: no such task {name!r}; have: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def decoder(name: str) -> ModuleType:
    """Import what makes predictions of outputs, for a task of `names()`; it needs numpy alone and goes into bundles."""
    return importlib.import_module(f"{__name__}.{name}.decode")
