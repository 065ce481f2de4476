"""The papers of a bundle: a model card for people and a CycloneDX bill of materials for machines."""

from importlib import metadata
from typing import Any

UNITS = {
    "accuracy": ("accuracy", 100, "%"),
    "drop_teacher": ("drop against the teacher", 1, "points"),
    "drop_fp32": ("drop against the pruned FP32", 1, "points"),
    "agreement": ("agreement with FP32", 100, "%"),
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
    data = evidence["data"]
    lines = [
        f"# {evidence['project']} for {evidence['target']}",
        "",
        f"An image model ({evidence['task']}, {len(data['classes'])} classes) in {evidence['precision']} "
        f"for {evidence['runtime']} on {evidence['device']}. Verdict of its gates: "
        f"**{evidence['verdict']['verdict']}**.",
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
        "## Gates",
        *[f"- {line}" for line in gates(evidence["verdict"])],
        "",
        "## Data",
        f"Images: {', '.join(f'{n} {split}' for split, n in data['images'].items())}. "
        f"Classes: {', '.join(data['classes'])}.",
        "",
        "## Limits",
        "The numbers hold for images like those of the test split. A class that is not in the list above gets the "
        "label of another one. The evidence, with all hashes, is in `evidence.json`.",
        "",
    ]
    return "\n".join(lines)


def bom(evidence: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of materials, CycloneDX 1.6 with a model card; no time and no serial number stand in it."""
    data = evidence["data"]
    ref = f"{evidence['project']}.{evidence['target']}"
    packages = [(n, v, f"pkg:pypi/{n}@{v}") for n, v in sorted(evidence["packages"].items())]
    measured = [
        {"type": key, "value": repr(number)}
        for key, number in sorted(evidence["metrics"].items())
        if isinstance(number, (int, float))
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": ref,
                "name": ref,
                "version": evidence["artifact"]["sha256"],
                "hashes": [{"alg": "SHA-256", "content": evidence["artifact"]["sha256"]}],
                "modelCard": {
                    "modelParameters": {
                        "task": evidence["task"],
                        "datasets": [{"ref": "dataset"}],
                        "inputs": [{"format": "image"}],
                        "outputs": [{"format": "json"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": measured},
                },
            }
        },
        "components": [
            *[
                {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": h}]}
                for name, h in sorted(evidence["artifact"]["files"].items())
            ],
            *[
                {
                    "type": "library",
                    "bom-ref": f"pkg:pypi/{n}@{v}",
                    "name": n,
                    "version": v,
                    "purl": f"pkg:pypi/{n}@{v}",
                }
                for n, v in sorted(evidence["packages"].items())
            ],
            {
                "type": "data",
                "bom-ref": "dataset",
                "name": evidence["project"],
                "version": data["sha256"],
                "hashes": [{"alg": "SHA-256", "content": data["sha256"]}],
            },
        ],
        "dependencies": [{"ref": ref, "dependsOn": [purl for *_, purl in packages]}],
    }
