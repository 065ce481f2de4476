"""Which targets can run on this machine, and what to install for the others."""

from pathlib import Path
from typing import Any

from pipelines import params, runtimes
from pipelines.stage import StageError


def targets(path: Path) -> list[dict[str, Any]]:
    """Return each target of the file with what it lacks here: `lacking`, packages, and `install`, a command or None."""
    declared = params.read(path).get("targets")
    found = []
    for name, target in declared.items() if isinstance(declared, dict) else ():
        entry = target if isinstance(target, dict) else {}
        try:
            lacking = runtimes.missing(runtimes.load(str(entry.get("runtime")), f"targets.{name}.runtime"))
        except StageError:  # a mistake in the file, and told as such
            continue
        found.append(
            {
                "target": name,
                **{key: entry.get(key) for key in ("runtime", "precision", "device")},
                "runs_here": not lacking,
                "lacking": lacking,
                "install": f"pip install {' '.join(lacking)}" if lacking else None,
            }
        )
    return found


def others(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runtimes that no target names: `runtime`, `precisions`, `install`, a command or None."""
    named = {target["runtime"] for target in found}
    return [
        {
            "runtime": name,
            "precisions": list(module.PRECISIONS),
            "install": f"pip install {' '.join(lacking)}" if (lacking := runtimes.missing(module)) else None,
        }
        for name in runtimes.names()
        if name not in named
        for module in [runtimes.load(name)]
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Return the targets as lines for people."""
    heads = ["target", "runtime", "precision", "device"]
    rows = [[*heads, "runs here"]]
    rows += [[*(str(t[h]) for h in heads), f"no: {t['install']}" if t["install"] else "yes"] for t in found]
    widths = [max(len(row[n]) for row in rows) for n in range(len(heads))]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)
