"""What proves a bundle: its signature, its hashes, its verdict, and that it still scores on this machine."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import signing
from pipelines.files import read_json, sha256_file, sha256_tree, tree
from pipelines.stage import StageError

Model = Callable[[Sequence[NDArray[Any]]], list[dict[str, Any]]]

# A bundle holds these kinds of file and no other: no pickle, no archive, no native library.
KINDS = {".bin", ".json", ".md", ".npy", ".onnx", ".pte", ".py", ".tflite", ".txt", ".xml"}
LARGEST = 2 * 2**30  # bytes of a bundle


def bundle_hash(bundle: Path) -> str:
    """Return the identity of a bundle: the SHA-256 of its SHA256SUMS, which covers every file but the signature."""
    sums = bundle / "SHA256SUMS"
    if not sums.is_file() or sums.is_symlink():
        raise StageError("the bundle has no SHA256SUMS")
    return sha256_file(sums)


def verify(bundle: Path, expected: str = "") -> dict[str, Any]:
    """Return the evidence of a bundle whose signature and hashes hold.

    `expected` is `PROJECT.TARGET` when the bundle must be of one registered model. Nothing of the bundle is run.
    Raises StageError with the reason.
    """
    _check_kinds(bundle)
    signing.verify(bundle, signing.trusted_keys())
    _check_sums(bundle)
    try:
        return _consistent(bundle, read_json(bundle / "evidence.json"), expected)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"evidence.json cannot be read: {_line(error)}") from None


def _consistent(bundle: Path, evidence: dict[str, Any], expected: str) -> dict[str, Any]:
    """Return the evidence when its parts speak of the same artifact, the one in this bundle. Raises StageError."""
    if sha256_tree(bundle / "model") != evidence["artifact"]["sha256"]:
        raise StageError("evidence.json speaks of another artifact")
    if evidence["metrics"]["sha256"] != evidence["artifact"]["files"]:
        raise StageError("the metrics are those of another artifact")
    for gate in evidence["verdict"]["gates"]:
        if evidence["metrics"].get(gate["metric"]) != gate["value"]:
            raise StageError(f"the verdict was given on another {gate['metric']} than was measured")
    name = f"{evidence['project']}.{evidence['target']}"
    if expected and name != expected:
        raise StageError(f"the bundle is of {name}, not of {expected}")
    return evidence


def promotable(evidence: dict[str, Any]) -> None:
    """Raise StageError with the gates that were missed, unless the verdict is `passed`."""
    verdict = evidence["verdict"]
    if verdict["verdict"] == "passed" and all(g["result"] == "passed" for g in verdict["gates"]):
        return
    missed = "; ".join(g["reason"] for g in verdict["gates"] if g["result"] != "passed")
    raise StageError(f"it did not pass its gates, the verdict is {verdict['verdict']}: {missed or 'no gate is met'}")


def open_model(bundle: Path, threads: int = 1) -> Model:
    """Return the model of a bundle, run by the bundle's own program, after `verify`. Raises StageError."""
    verify(bundle)
    try:
        model: Model = runpy.run_path(str(bundle / "predict.py"))["model"](threads)
    except Exception as error:
        raise StageError(f"it does not load on this machine: {_line(error)}") from error
    return model


def prove(bundle: Path, model: Model) -> str:
    """Run the golden images of the bundle, and return how it scored.

    Raises StageError when the model fails, or gets fewer right than its evidence requires.
    """
    golden = read_json(bundle / "evidence.json")["golden"]
    images = np.load(bundle / "golden" / "images.npy", allow_pickle=False)
    labels = np.load(bundle / "golden" / "labels.npy", allow_pickle=False)
    try:
        found = [model([image])[0] for image in images]  # one by one, as they will come
    except Exception as error:
        raise StageError(f"it does not run on this machine: {_line(error)}") from error
    # Bundles made before detection have no `hits`; they classify.
    hits = getattr(model, "hits", lambda prediction, label: prediction["class"] == label)
    correct = int(sum(hits(p, label) for p, label in zip(found, labels, strict=True)))
    answers = golden.get("answers", len(labels))
    if correct < golden["required"]:
        raise StageError(
            f"on this machine it gets {correct} of {answers} golden answers right; "
            f"{golden['correct']} where it was built, {golden['required']} are required"
        )
    return f"{correct} of {answers} golden answers right"


def _check_kinds(bundle: Path) -> None:
    size = 0
    for path in bundle.rglob("*"):
        name = path.relative_to(bundle).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StageError(f"{name}: is a link or no plain file")
        if path.is_file():
            size += path.stat().st_size
            if path.suffix not in KINDS and name != "SHA256SUMS":
                raise StageError(f"{name}: a bundle holds no files of this kind")
    if size > LARGEST:
        raise StageError(f"the bundle has {size:,} bytes; at most {LARGEST:,} are taken")


def _check_sums(bundle: Path) -> None:
    listed = {}
    for line in (bundle / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts:
            raise StageError(f"SHA256SUMS: {name!r} leads out of the bundle")
        listed[name] = digest
    found = {p.relative_to(bundle).as_posix(): p for p in tree(bundle)}
    for name, path in found.items():
        if name not in (signing.SIGNATURE, "SHA256SUMS") and listed.get(name) != sha256_file(path):
            raise StageError(f"{name}: differs from SHA256SUMS")
    if missing := sorted(set(listed) - set(found)):
        raise StageError(f"{missing[0]}: is missing from the bundle")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
