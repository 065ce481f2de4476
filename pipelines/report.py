"""Writes the build as one page: verdicts, Pareto plots, gates, where the accuracy went, what it took, lineage."""

import csv
from pathlib import Path
from typing import Any

from pipelines import findings, params, pareto, pictures, summary, tasks, wording
from pipelines.changes import Judged
from pipelines.files import write_folder, write_json
from pipelines.stage import UnansweredError, run

TEMPLATES = Path(__file__).parent / "templates"
FIGURES = ("metric", "drop", "p50_ms", "size_mb", "speedup", "verdict")


def main(build: Path, out: Path) -> None:
    """Write `out/index.html`, the page of what is in the folder `build`; it opens without a network.

    Beside it lie the figures of its plots, for `dvc metrics` (`variants.json`) and `dvc plots` (`variants.csv`), and
    of detectors the images on which each target differs most from FP32 (`pictures/TARGET/N.jpg`), for MLflow.
    Raises StageError when nothing there has been measured.
    """
    page, drawn = _page(build)
    rows = figures(summary.variants(build), tasks.load(params.value("task")).METRIC)
    with write_folder(out) as folder:
        (folder / "index.html").write_text(page, encoding="utf-8")
        write_json(folder / "variants.json", {row["variant"]: {k: row[k] for k in FIGURES} for row in rows})
        with (folder / "variants.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["variant", *FIGURES], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        for name, data in drawn.items():
            (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "pictures" / name).write_bytes(data)


def figures(found: list[tuple[str, dict[str, Any], str]], metric: str) -> list[dict[str, Any]]:
    """Return of each variant what the plots show: the metric in percent, p50 in ms, size in MB; None: not measured."""
    return [
        {
            "variant": name,
            "metric": None if m.get(metric) is None else round(100 * m[metric], 4),
            "drop": None if m.get("drop_teacher") is None else round(m["drop_teacher"], 4),
            "p50_ms": None if m.get("p50_ms") is None else round(m["p50_ms"], 4),
            "size_mb": round(m["size_bytes"] / 1e6, 4),
            "speedup": None if m.get("speedup_teacher") is None else round(m["speedup_teacher"], 2),
            "verdict": None if verdict == "-" else verdict,
        }
        for name, m, verdict in found
    ]


def render(build: Path) -> str:
    """Return the page. The same files give the same bytes."""
    return _page(build)[0]


def _page(build: Path) -> tuple[str, dict[str, bytes]]:
    """Return the page, and its pictures of detections by `TARGET/N.jpg`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = summary.variants(build)
    if not found:
        raise UnansweredError(f"{build}: no metrics; run `dvc repro` first")
    everything = params.read()
    metric = tasks.load(everything["task"]).METRIC
    judged = Judged(build / "data", build / "onnx", everything["task"])
    targets = [findings.target(build, name, m, verdict) for name, m, verdict in found if verdict != "-"]
    changes = [findings.changes(build, judged, t["name"]) for t in targets]
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        project=everything["project"],
        task=everything["task"],
        metric=metric,
        headline=wording.headline([t["verdict"] for t in targets]),
        images=next(m["images"] for _, m, _ in found),
        targets=targets,
        variants=[findings.variant(name, m, verdict, metric) for name, m, verdict in found],
        plots=_plots(found, metric),
        steps=findings.steps(found),
        slices=findings.slices(found, judged),
        changes=changes,
        same=pictures.SAME,
        activations=findings.activations(build / "calibration" / "activations.csv"),
        took=findings.took(build, everything),
        parameters=sorted(findings.flat(everything).items()),
        lineage=findings.lineage(build, targets),
        listed=findings.LISTED,
    )
    drawn = {f"{c['name']}/{n}.jpg": s.picture for c in changes for n, s in enumerate(c["images"], 1) if s.picture}
    return page, drawn


def _plots(found: list[tuple[str, dict[str, Any], str]], metric: str) -> list[dict[str, str]]:
    """Return the Pareto plots: the metric against latency and against size."""
    plots = []
    for key, factor, unit, title in (
        ("p50_ms", 1.0, "latency p50, ms", "latency"),
        ("size_bytes", 1e-6, "size, MB", "size"),
    ):
        dots = [
            pareto.Point(
                name,
                m[key] * factor,
                100 * m[metric],
                100 * m[f"{metric}_low"],
                100 * m[f"{metric}_high"],
                "fp32" if verdict == "-" else verdict,
            )
            for name, m, verdict in found
            if m.get(key) and m.get(metric) is not None
        ]
        if dots:
            best = ", ".join(p.name for p in pareto.front(dots))
            plots.append({"title": title, "svg": pareto.scatter(dots, unit, f"{metric} %"), "front": best})
    return plots


if __name__ == "__main__":
    run(main)
