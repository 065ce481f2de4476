"""The model card of a bundle, for people; and how measured numbers are named and written everywhere."""

from importlib import metadata
from typing import Any

from pipelines import bom

UNITS = {
    "accuracy": ("accuracy", 100, "%"),
    "mAP50-95": ("mAP50-95", 100, "%"),
    "mAP50": ("mAP50", 100, "%"),
    "drop_teacher": ("drop against the teacher", 1, "points"),
    "drop_fp32": ("drop against the pruned FP32", 1, "points"),
    "drop_worst_slice": ("drop in the slice that loses most", 1, "points"),
    "kept_teacher": ("kept of the teacher", 100, "%"),
    "kept_fp32": ("kept of the pruned FP32", 100, "%"),
    "agreement": ("agreement with FP32", 100, "%"),
    "changed_elsewhere": ("predictions that another runtime or instruction set changes", 100, "%"),
    "int8_share": ("multiply-adds executed in INT8", 100, "%"),
    "calibration_overlap": ("calibration images in the test split", 1, ""),
    "size_bytes": ("size", 1e-6, "MB"),
    "compression": ("smaller than the teacher", 1, "times"),
    "load_ms": ("load", 1, "ms"),
    "p50_ms": ("latency p50", 1, "ms"),
    "p95_ms": ("latency p95", 1, "ms"),
    "p99_ms": ("latency p99", 1, "ms"),
    "throughput_per_s": ("throughput", 1, "images/s"),
    "speedup": ("faster than FP32 in the same runtime", 1, "times"),
    "speedup_teacher": ("faster than the teacher in the same runtime", 1, "times"),
    "peak_memory_mb": ("peak memory", 1, "MiB"),
    "energy_mj": ("energy per image", 1, "mJ"),
    "images": ("test images", 1, ""),
}


STATED = {
    "supplier": "Supplier",
    "license": "License",
    "contact": "Contact",
    "intended_use": "Intended use",
    "out_of_scope": "Not meant for",
    "data": "Data",
    "data_license": "License of the data",
    "sensitive_data": "Sensitive data",
}


def packages(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the installed packages that provide these import names, and of numpy."""
    providers = metadata.packages_distributions()
    found = {name: providers.get(name.partition(".")[0], [name])[0] for name in (*names, "numpy")}
    return {package: metadata.version(package) for package in sorted(set(found.values()))}


def numbers(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the measured numbers as (name, value with unit and interval), in a fixed order."""
    rows = []
    for key, (name, factor, unit) in UNITS.items():
        value = metrics.get(key)
        if value is None:
            continue
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        text = f"{value * factor:.4g}"
        if low is not None and high is not None:
            text += f" ({low * factor:.4g} to {high * factor:.4g})"
        rows.append((name, f"{text} {unit}".rstrip()))
    return rows


def gates(verdict: dict[str, Any]) -> list[str]:
    """Return one line for each gate: its result, and why; and what a search says of its choice."""
    note = [f"search: {verdict['note']}"] if "note" in verdict else []
    return [f"{gate['result']}: {gate['reason']}" for gate in verdict["gates"]] + note


def markdown(evidence: dict[str, Any]) -> str:
    """Return the model card."""
    data, about = evidence["data"], evidence.get("about") or {}
    family = f" ({evidence['family']})" if evidence.get("family") else ""
    lines = [
        f"# {evidence['project']} for {evidence['target']}",
        "",
        f"An image model{family} for {evidence['task']} of {len(data['classes'])} classes, in {evidence['precision']} "
        f"for {evidence['runtime']} on {evidence['device']}. Verdict of its gates: "
        f"**{evidence['verdict']['verdict']}**.",
        "",
        "| | |",
        "| --- | --- |",
        *[f"| {name} | {about.get(key) or 'not stated'} |" for key, name in STATED.items()],
        "",
        "What is not stated here is for `export.about` in `params.yaml` to say.",
        "",
        "## Use",
        "`python predict.py IMAGE...` needs numpy and "
        + ", ".join(f"{n} {v}" for n, v in evidence["packages"].items() if n != "numpy")
        + ". Check the bundle first: `quantmill trace .` for the signature, or `sha256sum -c SHA256SUMS` for damage.",
        "",
        "## Measured",
        "In brackets the 95 % interval of a bootstrap over the test images. Speed holds for the machine that measured.",
        "",
        "| | |",
        "| --- | --- |",
        *[f"| {name} | {text} |" for name, text in numbers(evidence["metrics"])],
        "",
        *_slices(evidence["metrics"]),
        "## Gates",
        *[f"- {line}" for line in gates(evidence["verdict"])],
        "",
        "## Data",
        f"Images: {', '.join(f'{n} {split}' for split, n in data['images'].items())}; {data['rejected']} left out. "
        f"Each has {data['channels']} channel(s) of {data['bits']} bits. Classes: {', '.join(data['classes'])}.",
        "INT8 ranges come from training images alone; the gates see to it that none of them is like a test image.",
        "",
        "## Limits",
        *[f"- {line}" for line in [*bom.limitations(evidence, about), *bom.tradeoffs(evidence["metrics"])]],
        "",
        "## Where it comes from",
        "| | SHA-256 |",
        "| --- | --- |",
        *[f"| {name} | `{digest}` |" for name, digest in _hashes(evidence).items()],
        "",
        "The signature of the bundle covers this page; all evidence is in `evidence.json`, what it is made of in "
        "`sbom.cdx.json` (CycloneDX).",
        "",
    ]
    return "\n".join(lines)


def _slices(metrics: dict[str, Any]) -> list[str]:
    found = metrics.get("slices") or {}
    if not found:
        return []
    rows = [f"| {name} | {100 * value:.2f} % |" for name, value in sorted(found.items(), key=lambda s: (s[1], s[0]))]
    return ["### By slice, the worst first", "| slice | task metric |", "| --- | --- |", *rows, ""]


def _hashes(evidence: dict[str, Any]) -> dict[str, str]:
    return {
        "artifact": evidence["artifact"]["sha256"],
        "FP32 model before quantizing": evidence["source"]["sha256"],
        "data": evidence["data"]["sha256"],
        "calibration images": evidence["calibration"],
        "parameters of the target": evidence["params_sha256"],
        "code": evidence["code"]["sha256"],
    }
