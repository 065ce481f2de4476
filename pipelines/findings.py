"""What the report of a build tells, read from its files and put into words."""

import csv
from pathlib import Path
from typing import Any

from pipelines import pareto, wording
from pipelines.card import UNITS
from pipelines.changes import Judged
from pipelines.files import read_json, sha256_file

WORST = 6  # images shown of each target
LISTED = 30  # classes, files and layers shown of a table before the rest is folded away
MADE = {
    "tried": "what was tried",
    "sensitivity": "sensitivity of its operators, measured",
    "training": "training for INT8",
}  # in quantize.json
TRAINED = ("teacher", "student", "pruned")


def target(build: Path, name: str, metrics: dict[str, Any], verdict: str) -> dict[str, Any]:
    """Return a target's verdict in words, its gates, and how its artifact was made."""
    gates = []
    if verdict != "not judged":
        gates = read_json(build / "verdicts" / f"{name}.json")["gates"]
    bundle = build / "bundles" / name / "SHA256SUMS"
    done = _optional(build / "targets" / name / "quantize.json") or {}
    return {
        "name": name,
        "verdict": verdict,
        "sentence": wording.sentence(metrics),
        "quantized": wording.points(metrics, "drop_fp32"),
        "why": [g["reason"] for g in gates if g["result"] != "passed"],
        "gates": [{**_gate(g), **g} for g in gates],
        "metrics": metrics,
        "done": done,
        "done_flat": sorted(flat({k: v for k, v in done.items() if k not in MADE and k != "trade_offs"}).items()),
        "tables": {title: rows for key, title in MADE.items() if (rows := _table(_placed(done, key)))},
        "elsewhere": _elsewhere(metrics.get("elsewhere") or {}),
        "bundle": sha256_file(bundle) if bundle.is_file() else None,
        "evidence": _optional(bundle.with_name("evidence.json")),
    }


def _gate(gate: dict[str, Any]) -> dict[str, str]:
    """Return a gate's numbers as people read them, and its small plot."""
    name, factor, unit = UNITS.get(gate["metric"], (gate["metric"].replace("_", " "), 1, ""))
    unit = "x" if unit == "times" else f" {unit}".rstrip()
    value, low, high = gate["value"], gate["low"], gate["high"]
    interval = (
        "" if low is None or high is None else f"{wording.number(low * factor)} to {wording.number(high * factor)}"
    )
    plot = ""
    if value is not None:
        plot = pareto.gate(gate["bound"], gate["threshold"], value, low, high, gate["result"])
    return {
        "name": name[0].upper() + name[1:],
        "wanted": f"{'≤' if gate['bound'] == 'max' else '≥'} {wording.number(gate['threshold'] * factor)}{unit}",
        "measured": "not measured" if value is None else f"{wording.number(value * factor)}{unit}",
        "interval": interval,
        "plot": plot,
    }


def _elsewhere(found: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Return what the artifact said in other places, in words."""
    rows = []
    for place, row in found.items():
        if reason := row.get("not_run"):
            rows.append({"place": place, "changed": "not run", "difference": "–", "note": reason})
            continue
        rows.append(
            {
                "place": place,
                "changed": wording.percent(row["changed"]),
                "difference": f"{100 * row['max_difference']:.2g} %",
                "note": f"{row['images']} test images",
            }
        )
    return rows


def variant(name: str, m: dict[str, Any], verdict: str, metric: str) -> dict[str, Any]:
    """Return a variant's numbers as the table shows them."""
    fp32 = verdict == "-"
    return {
        "name": name,
        "verdict": verdict,
        "metric": wording.percent(m.get(metric)),
        "interval": " to ".join(
            wording.percent(m.get(f"{metric}{end}")).removesuffix(" %") for end in ("_low", "_high")
        ),
        "drop": "–" if name == "teacher-fp32" else wording.signed(m, "drop_teacher"),
        "size": wording.size(m["size_bytes"]),
        "smaller": "" if name == "teacher-fp32" else wording.times(m["compression"], "smaller", "larger"),
        "p50": wording.ms(m.get("p50_ms")),
        "p95": wording.ms(m.get("p95_ms")),
        "faster": "–" if m.get("speedup_teacher") is None else f"{m['speedup_teacher']:.1f}x",
        "own": "" if fp32 or m.get("speedup") is None else f"{m['speedup']:.2f}x its FP32",
        "rate": "–" if m.get("throughput_per_s") is None else f"{m['throughput_per_s']:,.0f}",
        "memory": "–" if m.get("peak_memory_mb") is None else f"{m['peak_memory_mb']:.0f} MiB",
        "int8": "–" if m.get("int8_share") is None else f"{100 * m['int8_share']:.0f} %",
    }


def steps(found: list[tuple[str, dict[str, Any], str]]) -> list[dict[str, str]]:
    """Return each step of the line and the points that it cost."""
    drops = {name: m["drop_teacher"] for name, m, _ in found if m.get("drop_teacher") is not None}
    steps = []
    if "student-fp32" in drops:
        steps.append(("Distilling the student", drops["student-fp32"], "against the teacher"))
    if {"student-fp32", "pruned-fp32"} <= set(drops):
        steps.append(("Pruning it", drops["pruned-fp32"] - drops["student-fp32"], "against the student"))
    for name, m, verdict in found:
        if verdict != "-" and m.get("drop_fp32") is not None:
            steps.append((f"Quantizing: {name}", m["drop_fp32"], "against the pruned FP32 model"))
    widest = max((abs(lost) for _, lost, _ in steps), default=0) or 1
    return [
        {"name": name, "lost": f"{-lost + 0.0:+.2f}" if round(lost, 2) else "0.00", "to": to,
         "kind": "down" if round(lost, 2) > 0 else "up" if round(lost, 2) < 0 else "same",
         "share": f"{100 * abs(lost) / widest:.1f}"}
        for name, lost, to in steps
    ]  # fmt: skip


def slices(found: list[tuple[str, dict[str, Any], str]], judged: Judged) -> dict[str, Any]:
    """Return the score of each slice (a class, a third by brightness), the slices that lost most first."""
    shown = [(n, m["slices"]) for n, m, v in found if m.get("slices") and n != "student-fp32"]
    counts = judged.counts()
    if not shown:
        return {"heads": [], "rows": []}
    before = dict(shown).get("pruned-fp32", shown[0][1])
    rows = []
    for name in before:
        cells = []
        for variant, slices in shown:
            value, lost = slices.get(name), 0.0
            if value is not None and variant not in ("teacher-fp32", "pruned-fp32", "given-fp32"):
                lost = 100 * (before[name] - value)
            kind = "down" if lost > 1e-9 else "up" if lost < -1e-9 else "same"
            strength = min(abs(lost) / 5, 1)
            moved = kind != "same"
            cells.append(
                {
                    "value": wording.percent(value),
                    "lost": f"{-lost:+.1f}" if moved else "",
                    "kind": kind,
                    "strength": f"{0.15 + 0.6 * strength:.2f}" if moved else "0",
                    "by": lost,
                }
            )
        rows.append({"name": name, "count": counts.get(name, counts.get(f"class {name}")), "cells": cells})
    rows.sort(key=lambda r: -max(c["by"] for c in r["cells"]))
    return {"heads": [name for name, _ in shown], "rows": rows}


def changes(build: Path, judged: Judged, name: str) -> dict[str, Any]:
    """Return what a target says otherwise than the pruned FP32 model does."""
    short = str(read_json(build / "metrics" / f"{name}.json").get("precision", name.rpartition("-")[2])).upper()
    before = judged.read(build / "baseline" / "pruned.npz")
    after = judged.read(build / "predictions" / f"{name}.npz")
    if before is None or after is None:
        return {"name": name, "moves": [], "images": [], "changed": 0, "short": short}
    moves = judged.moves(before, after)
    images = judged.most_changed(before, after, WORST, short)
    return {"name": name, "moves": moves, "images": images, "changed": sum(n for *_, n in moves), "short": short}


def activations(path: Path) -> list[dict[str, str]]:
    """Return the activations whose outliers would widen an INT8 scale most: full range / range of least error."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        full, best = (float(row[f"{m}_high"]) - float(row[f"{m}_low"]) for m in ("minmax", "mse"))
        if best > 0:
            found.append((full / best, row["tensor"], full, best))
    found.sort(key=lambda f: (-f[0], f[1]))
    return [{"tensor": t, "ratio": f"{r:.2f}x", "full": f"{a:.3g}", "best": f"{b:.3g}"} for r, t, a, b in found[:10]]


def _placed(done: dict[str, Any], key: str) -> Any:
    """Return a list of records of `quantize.json`; that of sensitivities says where its operators stay."""
    rows, kept = done.get(key), set(done.get("kept", ()))
    if key != "sensitivity" or not rows:
        return rows
    return [{**row, "stay_in": "float" if kept.issuperset(row["operators"]) else "INT8"} for row in rows]


def _table(rows: Any) -> dict[str, Any] | None:
    """Return a list of records as a table: names first, then numbers."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    keys = dict.fromkeys(key for row in rows for key in row)
    heads = sorted(keys, key=lambda k: isinstance(rows[0].get(k), (int, float)) and not isinstance(rows[0][k], bool))
    cells = [[_cell(row.get(head)) for head in heads] for row in rows]
    return {"heads": [head.replace("_", " ") for head in heads], "rows": cells[:LISTED], "left": len(cells) - LISTED}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(part)}" for key, part in value.items())
    if isinstance(value, list):
        rest = f" and {len(value) - 3} more" if len(value) > 3 else ""
        return ", ".join(map(_cell, value[:3])) + rest
    return "–" if value is None or value == "" else str(value)


def took(build: Path, everything: dict[str, Any]) -> dict[str, Any]:
    """Return what went in: images, files left out, the contract's result, how training went, and each stage's cost."""
    info = read_json(build / "data" / "dataset.json")
    rejected = read_json(build / "data" / "rejected.json")
    contract = (_optional(build / "contract" / "results.json") or {}).get("checks", [])
    training = []
    for name in TRAINED:
        path = build / name / "curves.csv"
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [c for c in ("loss", "val_metric") if rows and c in rows[0]]
        training.append({"name": name, "epochs": len(rows), "columns": {
            c: {"svg": pareto.curve([float(r[c]) for r in rows]), "last": f"{float(rows[-1][c]):.4g}"} for c in columns
        }})  # fmt: skip
    return {
        "info": info,
        "rejected": rejected[:LISTED],
        "left": len(rejected) - LISTED,
        "count": len(rejected),
        "contract": contract,
        "broken": [c for c in contract if not c["success"]],
        "training": training,
        "calibration": len((_optional(build / "calibration" / "manifest.json") or {}).get("images", [])),
        "pruning": _optional(build / "pruned" / "pruning.json"),
        "input": everything.get("input", {}),
        "stages": (stages := _stages(build / "took")),
        "seconds": wording.duration(sum(stage["seconds"] for stage in stages)),
    }


def _stages(folder: Path) -> list[dict[str, Any]]:
    """Return what each stage took where it was last run, the longest first: of all targets together."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        one, name = read_json(path), path.stem.partition("@")[0]
        known = found.setdefault(name, {"name": name, "runs": 0, "seconds": 0.0, "peak_memory_mb": 0, "cores": set()})
        known["runs"] += 1
        known["seconds"] += one["seconds"]
        known["peak_memory_mb"] = max(known["peak_memory_mb"], one["peak_memory_mb"])
        known["cores"].add(one["cores"])
    longest = max((stage["seconds"] for stage in found.values()), default=0) or 1
    return [
        {
            **s,
            "time": wording.duration(s["seconds"]),
            "share": 100 * s["seconds"] / longest,
            "cores": sorted(s["cores"]),
        }
        for s in sorted(found.values(), key=lambda stage: -stage["seconds"])
    ]


def lineage(build: Path, targets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return name and SHA-256 of everything that the build is made of, from the data to the bundles."""
    found = []
    evidence = next((t["evidence"] for t in targets if t["evidence"]), None)
    if evidence:
        found += [("data", evidence["data"]["sha256"]), ("code of the stages", evidence["code"]["sha256"])]
    for name in TRAINED:
        path = build / name / "model.safetensors"
        if path.is_file():
            found.append((f"{name}, weights", sha256_file(path)))
    for name in TRAINED:
        path = build / "onnx" / f"{name}.onnx"
        if path.is_file():
            found.append((f"{name}, FP32 ONNX", sha256_file(path)))
    if manifest := _optional(build / "calibration" / "manifest.json"):
        found.append(("calibration images", manifest["digest"]))
    for target in targets:
        if target["evidence"]:
            found.append((f"{target['name']}, artifact", target["evidence"]["artifact"]["sha256"]))
            found.append((f"{target['name']}, parameters", target["evidence"]["params_sha256"]))
        if target["bundle"]:
            found.append((f"{target['name']}, bundle", target["bundle"]))
    return found


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one, its keys joined by dots."""
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in flat(part, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): str(value)}
