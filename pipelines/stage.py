"""How a stage runs as a program: paths in, one line per error out."""

import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.files import write_json

QUIET = {
    # Telemetry of every dependency is off in our commands; see also the Makefile.
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


class StageError(Exception):
    """A mistake that a person can mend. The message is one line: where, what is wrong, what to do."""

    code = 1  # exit status of a `quantmill` command that ends in it


class UnansweredError(StageError):
    """What was asked could not be answered: a server is away, a file or a build is missing. It may be later."""

    code = 3


def quiet() -> None:
    """Turn off the telemetry of our dependencies for this process and its children."""
    os.environ.update(QUIET)


def run(main: Callable[..., None]) -> None:
    """Call `main` with the paths on the command line, one per parameter.

    A parameter annotated `str` gets its word as it is, any other a `Path`; one with a default may be left out. After
    `--took`, last, stands a file that is written with what the stage took: `seconds`, `peak_memory_mb` and `cores`.
    Exits with 1 and one line on standard error when `main` raises StageError, and with 2 when the words do not match
    the parameters.
    """
    quiet()
    parameters = list(inspect.signature(main).parameters.values())
    words = sys.argv[1:]
    took = None
    if words[-2:-1] == ["--took"]:
        took, words = Path(words[-1]), words[:-2]
    module = main.__globals__["__spec__"].name
    needed = sum(p.default is p.empty for p in parameters)
    if not needed <= len(words) <= len(parameters):
        names = " ".join(p.name.upper() for p in parameters)
        print(f"usage: python -m {module} {names}", file=sys.stderr)
        raise SystemExit(2)
    arguments: list[Any] = [w if p.annotation is str else Path(w) for p, w in zip(parameters, words, strict=False)]
    try:
        main(*arguments)
    except StageError as error:
        print(f"{module.rpartition('.')[2]}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if took:
        write_json(took, _took())


def _took() -> dict[str, float]:
    """Return the seconds since this process began, the largest memory of it or a child in MB, and the cores here."""
    import resource

    import psutil

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": round(time.time() - psutil.Process().create_time(), 1),
        "peak_memory_mb": round(peak / (1e6 if sys.platform == "darwin" else 1e3)),
        "cores": os.cpu_count() or 1,
    }
