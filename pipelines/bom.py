"""The bill of materials of a bundle, CycloneDX 1.6 with a model card, for those who must answer for what is shipped."""

import uuid
from importlib import metadata
from typing import Any


def bom(evidence: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of materials of a bundle, from its evidence. No clock stands in it: it follows from the content.

    What `export.about` does not say (supplier, license, use) is left out, and `MODEL_CARD.md` says that it is.
    """
    about = evidence.get("about") or {}
    ref = f"{evidence['project']}.{evidence['target']}"
    libraries = [_library(name, version) for name, version in sorted(evidence["packages"].items())]
    model = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": ref,
        "version": evidence["artifact"]["sha256"],
        "description": f"{evidence['task']}, {evidence['precision']}, {evidence['runtime']} on {evidence['device']}",
        "hashes": _hash(evidence["artifact"]["sha256"]),
        **({"supplier": {"name": about["supplier"]}} if about.get("supplier") else {}),
        **({"licenses": [{"expression": about["license"]}]} if about.get("license") else {}),
        "pedigree": {"ancestors": [_ancestor(evidence)]},
        "modelCard": _card(evidence, about),
        "properties": _properties(
            {
                "quantmill:verdict": evidence["verdict"]["verdict"],
                "quantmill:precision": evidence["precision"],
                "quantmill:runtime": evidence["runtime"],
                "quantmill:device": evidence["device"],
                "quantmill:calibration": evidence["calibration"],
                "quantmill:code": evidence["code"]["sha256"],
                "quantmill:params": evidence["params_sha256"],
            }
        ),
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, ref + evidence['artifact']['sha256'])}",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "quantmill", "version": _version()}]},
            **({"supplier": {"name": about["supplier"]}} if about.get("supplier") else {}),
            "component": model,
        },
        "components": [*_files(evidence), *libraries, _dataset(evidence, about)],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted([*(library["bom-ref"] for library in libraries), "dataset"])},
            *({"ref": library["bom-ref"]} for library in libraries),
            {"ref": "dataset"},
        ],
        # What the libraries depend on themselves is their own affair, and differs from device to device.
        "compositions": [
            {"aggregate": "complete", "assemblies": [ref]},
            {"aggregate": "incomplete", "dependencies": [library["bom-ref"] for library in libraries]},
        ],
    }


def _card(evidence: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    data, family = evidence["data"], evidence.get("family")
    considerations = {
        "users": about.get("users"),
        "useCases": [about["intended_use"]] if about.get("intended_use") else None,
        "technicalLimitations": limitations(evidence, about),
        "performanceTradeoffs": tradeoffs(evidence["metrics"]),
    }
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": evidence["task"],
            **(
                {"architectureFamily": family, "modelArchitecture": f"{family}, distilled and pruned"}
                if family and family != "onnx"
                else {}
            ),
            "datasets": [{"ref": "dataset"}],
            "inputs": [{"format": f"image, {data['channels']} channel(s) of {data['bits']} bits"}],
            "outputs": [{"format": f"one of {len(data['classes'])} classes with its score, JSON"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": measured(evidence["metrics"])},
        "considerations": {key: value for key, value in considerations.items() if value},
    }


def measured(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each measured number as a performance metric: with its interval, and those of slices with their slice."""
    found = []
    for key, value in sorted(metrics.items()):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or key.endswith(("_low", "_high")):
            continue
        one: dict[str, Any] = {"type": key, "value": repr(value)}
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        if low is not None and high is not None:
            one["confidenceInterval"] = {"lowerBound": repr(low), "upperBound": repr(high)}
        found.append(one)
    slices = sorted((metrics.get("slices") or {}).items())
    return found + [{"type": "task metric", "value": repr(value), "slice": name} for name, value in slices]


def limitations(evidence: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """Return what the model is not for, in sentences."""
    metrics = evidence["metrics"]
    found = [
        "The numbers hold for images like those of the test split.",
        "A class that is not among those of the training data gets the label of another one.",
        "Latency, throughput and memory hold for the machine that measured.",
    ]
    if metrics.get("slices"):
        name, value = min(metrics["slices"].items(), key=lambda item: (item[1], item[0]))
        found.append(f"The slice that it does worst in is {name!r}, with {100 * value:.2f} %.")
    if evidence["verdict"]["verdict"] != "passed":
        found.append(f"It did not pass its gates; the verdict is {evidence['verdict']['verdict']}.")
    return [*found, *([about["out_of_scope"]] if about.get("out_of_scope") else [])]


def tradeoffs(metrics: dict[str, Any]) -> list[str]:
    """Return what was given for what, against the teacher in FP32 (a given model: against itself), in sentences."""
    teacher = metrics.get("drop_teacher") is not None
    parts = [
        ("compression", "{:.1f} times smaller"),
        ("speedup_teacher" if teacher else "speedup", "{:.1f} times as fast"),
        ("drop_teacher" if teacher else "drop_fp32", "{:.2f} points of the task metric lost"),
    ]
    said = [text.format(metrics[key]) for key, text in parts if metrics.get(key) is not None]
    return [f"Against the {'teacher' if teacher else 'model'} in FP32: {', '.join(said)}."] if said else []


def license_of(package: str) -> dict[str, Any] | None:
    """Return the license that an installed package states: an SPDX expression where it gives one, else its words."""
    try:
        found: dict[str, Any] = metadata.metadata(package).json
    except metadata.PackageNotFoundError:
        return None
    if found.get("license_expression"):
        return {"expression": found["license_expression"]}
    classifiers = [c.rpartition(" :: ")[2] for c in found.get("classifier", []) if c.startswith("License ::")]
    words = next((line for line in [*classifiers, *str(found.get("license", "")).strip().split("\n")] if line), None)
    return {"license": {"name": words}} if words else None


def _library(name: str, version: str) -> dict[str, Any]:
    ref, stated = f"pkg:pypi/{name}@{version}", license_of(name)
    one: dict[str, Any] = {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}
    return {**one, "licenses": [stated]} if stated else one


def _files(evidence: dict[str, Any]) -> list[dict[str, Any]]:
    files = sorted(evidence["artifact"]["files"].items())
    return [
        {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hash(digest)} for name, digest in files
    ]


def _ancestor(evidence: dict[str, Any]) -> dict[str, Any]:
    digest = evidence["source"]["sha256"]
    return {
        "type": "machine-learning-model",
        "name": f"{evidence['project']}, pruned, FP32 ONNX",
        "version": digest,
        "hashes": _hash(digest),
    }


def _dataset(evidence: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    data = evidence["data"]
    counts = {f"images:{split}": str(count) for split, count in data["images"].items()}
    contents = {**counts, "left out": str(data["rejected"]), "classes": ", ".join(data["classes"])}
    described = {
        "type": "dataset",
        "name": evidence["project"],
        "contents": {"properties": _properties(contents)},
        **({"description": about["data"]} if about.get("data") else {}),
        **({"sensitiveData": [about["sensitive_data"]]} if about.get("sensitive_data") else {}),
    }
    owner = {"organization": {"name": about["supplier"]}} if about.get("supplier") else None
    if owner:
        described["governance"] = {"custodians": [owner]}
    return {
        "type": "data",
        "bom-ref": "dataset",
        "name": evidence["project"],
        "version": data["sha256"],
        "hashes": _hash(data["sha256"]),
        **({"licenses": [{"expression": about["data_license"]}]} if about.get("data_license") else {}),
        "data": [described],
    }


def _hash(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _version() -> str:
    try:
        return metadata.version("quantmill")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
