"""The bundle: whole, deterministic, signed, and able to run alone."""

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from pipelines import export as stage
from pipelines import runtimes, signing, tasks
from pipelines.stage import StageError
from registry import evidence
from tests.tiny import METRICS, TARGET, export

NAMING = (ast.FunctionDef, ast.ClassDef, ast.Assign)


def test_the_same_input_gives_the_same_bytes_but_for_the_signature(project):
    bundle = project / "build" / "bundles" / TARGET
    first = {p.name: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    export(project)
    second = {p.name: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    assert {n for n in first if first[n] != second[n]} <= {signing.SIGNATURE}


def test_the_bundle_is_complete_and_verifies(project):
    bundle = project / "build" / "bundles" / TARGET
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert names == {
        *("model/model.onnx", "preprocess.json", "postprocess.json", "labels.txt", "evidence.json", "quantize.json"),
        *("golden/images.npy", "golden/labels.npy", "MODEL_CARD.md", "sbom.cdx.json", "predict.py"),
        *("SHA256SUMS", signing.SIGNATURE),
    }
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
    found = evidence.verify(bundle, f"tiny.{TARGET}")
    assert found["golden"]["images"] == 32 and found["golden"]["correct"] >= 29
    assert found["metrics"]["accuracy"] == METRICS["accuracy"]
    bom = json.loads((bundle / "sbom.cdx.json").read_text())
    assert {c["name"] for c in bom["components"] if c["type"] == "library"} == {"numpy", "onnxruntime"}
    assert "timestamp" not in json.dumps(bom)
    text = (bundle / "MODEL_CARD.md").read_text()
    assert "96 (94 to 98) %" in text and str(project) not in text


def test_the_signature_holds_under_another_name_and_nowhere_else(project, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(project / "build" / "bundles" / TARGET, moved)
    assert evidence.verify(moved)["target"] == TARGET
    monkeypatch.chdir(tmp_path)
    assert evidence.verify(Path("elsewhere"))["target"] == TARGET
    monkeypatch.chdir(moved)
    assert evidence.verify(Path("."))["target"] == TARGET
    with (moved / "labels.txt").open("a") as file:
        file.write("11\n")
    with pytest.raises(StageError, match=r"labels\.txt"):
        evidence.verify(moved)


@pytest.mark.parametrize("task", tasks.names())
@pytest.mark.parametrize("runtime", runtimes.names())
def test_the_program_gives_no_name_to_two_things(runtime, task):
    source = ast.parse(stage.program(runtimes.load(runtime), tasks.decoder(task)))
    named = [getattr(node, "name", None) or node.targets[0].id for node in source.body if isinstance(node, NAMING)]
    assert {name for name in named if named.count(name) > 1} == set()


def test_metrics_of_another_artifact_are_refused(project):
    path = project / "build" / "targets" / TARGET / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StageError, match="measures another artifact"):
        export(project)


def test_an_unknown_target_is_named(project):
    with pytest.raises(StageError, match=r"targets\.nothing"):
        stage.main("nothing", *[project] * 7)


def test_key_is_made_once_and_private(tmp_path, monkeypatch):
    key = tmp_path / "a" / "key.pem"
    signing.make_key(key)
    first = key.read_bytes()
    signing.make_key(key)
    assert key.read_bytes() == first and key.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_runs_in_a_bare_environment(project, tmp_path):
    """A virtual environment that has numpy and onnxruntime alone, linked from ours, runs the program on an array."""
    bundle = tmp_path / "bundle"
    shutil.copytree(project / "build" / "bundles" / TARGET, bundle)
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    site = next((tmp_path / "bare" / "lib").glob("python*")) / "site-packages"
    for name in ("numpy", "onnxruntime", "flatbuffers", "packaging", "google"):
        found = next((p for p in map(_path(name), sys.path) if p and os.path.isdir(p)), None)
        if found:
            (site / name).symlink_to(found)
    libraries = next(p for p in map(_path("numpy.libs"), sys.path) if os.path.isdir(p))
    (site / "numpy.libs").symlink_to(libraries)
    image = np.load(bundle / "golden" / "images.npy")[0]
    np.save(tmp_path / "image.npy", image)
    python = tmp_path / "bare" / "bin" / "python"
    command = [python, "-I", bundle / "predict.py", "--verify", tmp_path / "image.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] == str(np.load(bundle / "golden" / "labels.npy")[0])
    assert subprocess.run([python, "-I", "-c", "import PIL"], capture_output=True).returncode == 1
    with (bundle / "labels.txt").open("a") as file:
        file.write("11\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "labels.txt: differs" in done.stderr


def _path(name):
    return lambda folder: os.path.join(folder, name)
