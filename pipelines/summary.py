"""Prints the table of every variant."""

from pathlib import Path
from typing import Any

from pipelines import tasks
from pipelines.files import read_json
from pipelines.params import value
from pipelines.stage import StageError, run

HEAD = ["variant", "{metric} %", "95 % interval", "drop teacher", "drop FP32", "size", "smaller", "p50 ms", "p95 ms",
        "x FP32", "x teacher", "verdict"]  # fmt: skip


def main(build: Path) -> None:
    """Print one line per variant found in the folder `build`; drops in points, speed-ups within one runtime."""
    found = variants(build)
    if not found:
        raise StageError(f"{build}: no metrics; run `dvc repro` first")
    metric = tasks.load(value("task")).METRIC
    rows = [[h.format(metric=metric) for h in HEAD], *(_row(name, m, v, metric) for name, m, v in found)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    for number, row in enumerate(rows):
        cells = [
            c.ljust(w) if n in (0, len(HEAD) - 1) else c.rjust(w)
            for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))
    print("\ndrops in points of the task metric (minus: a gain), with their 95 % paired-bootstrap interval;")
    print("x FP32: times as fast as the same model, x teacher: as the teacher, in FP32 in the same runtime")


def variants(build: Path) -> list[tuple[str, dict[str, Any], str]]:
    """Return name, metrics and verdict of each variant: the FP32 models, then by name the targets built here."""
    baseline = build / "baseline" / "metrics.json"
    fp32 = read_json(baseline) if baseline.is_file() else {}
    # A model that was given, not made by the line, was never pruned.
    found = [(f"{n if len(fp32) > 1 else 'given'}-fp32", m, "-") for n, m in fp32.items()]
    found.sort(key=lambda v: -v[1]["size_bytes"])
    for file in sorted((build / "metrics").glob("*.json")):
        verdict = build / "verdicts" / file.name
        if "not_here" in (metrics := read_json(file)):
            continue
        found.append((file.stem, metrics, read_json(verdict)["verdict"] if verdict.is_file() else "not judged"))
    return found


def _row(name: str, metrics: dict[str, Any], verdict: str, metric: str) -> list[str]:
    size = metrics["size_bytes"]
    return [
        name,
        f"{100 * metrics[metric]:.2f}",
        f"{100 * metrics[f'{metric}_low']:.1f}-{100 * metrics[f'{metric}_high']:.1f}",
        _drop(metrics, "teacher"),
        _drop(metrics, "fp32"),
        f"{size / 1e6:.2f} MB",
        f"{metrics['compression']:.1f}x",
        *(
            "-" if metrics[key] is None else f"{metrics[key]:.{digits}f}"
            for key, digits in (("p50_ms", 2), ("p95_ms", 2), ("speedup", 2), ("speedup_teacher", 1))
        ),
        verdict,
    ]


def _drop(metrics: dict[str, Any], reference: str) -> str:
    value, low, high = (metrics[f"drop_{reference}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.2f} ({low:+.1f}..{high:+.1f})" if low or high else f"{value:.2f}"


if __name__ == "__main__":
    run(main)
