"""A small real line: scikit-learn's digits, a linear classifier in ONNX, and a bundle of it for ONNX Runtime."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

PARAMS = """\
project: tiny
task: classification
seed: 0
data:
  source: {format: digits, path: params.yaml, size: 8}
  channels: 1
  bits: 8
  splits: {val: 0.1, test: 0.3}
  max_rejected: 0.01
input: {height: 8, width: 8, resize: stretch}
export: {golden: 32, golden_lost: 1}
targets:
  onnxruntime-fp32:
    runtime: onnxruntime
    precision: fp32
    device: cpu
    options: {}
    search: none
    aim: {}
    gates: {drop_fp32: {max: 0.5}}
"""
TARGET = "onnxruntime-fp32"
MODEL = f"tiny.{TARGET}"
METRICS = {
    "accuracy": 0.96,
    "accuracy_low": 0.94,
    "accuracy_high": 0.98,
    "drop_fp32": 0.1,
    "drop_fp32_low": -0.1,
    "drop_fp32_high": 0.3,
    "size_bytes": 3000,
    "compression": 12.0,
    "speedup": 1.7,
    "p50_ms": 0.05,
    "energy_mj": None,
    "images": 540,
    "precision": "fp32",
}


@pytest.fixture(scope="session", autouse=True)
def own_keys(tmp_path_factory):
    """The tests sign with a key of their own, and never touch that of the user."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("config")
    patch.setenv("XDG_CONFIG_HOME", str(folder))
    patch.setenv("QUANTMILL_SIGNING_KEY", str(folder / "quantmill" / "signing-key.pem"))
    patch.delenv("QUANTMILL_TRUSTED_KEYS", raising=False)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A project folder with `params.yaml` and `build/`, all but the bundles."""
    from pipelines import prepare
    from pipelines.files import sha256_bytes, write_json
    from registry import tracking

    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text(PARAMS)
    build = root / "build"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        prepare.main(build / "data")
        tracking.client()  # makes the database once for all tests
    weights = linear(build / "data")
    for name in ("teacher", "student", "pruned"):
        (build / "onnx").mkdir(exist_ok=True)
        (build / "onnx" / f"{name}.onnx").write_bytes(weights)
        folder = build / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(name.encode())
        (folder / "curves.csv").write_text("epoch,loss,val_accuracy\n0,2.1,0.5\n1,0.4,0.96\n")
    info = json.loads((build / "data" / "dataset.json").read_text())
    write_json(build / "onnx" / "model.json", {"task": "classification", "classes": info["classes"], "channels": 1})
    write_json(
        build / "onnx" / "preprocess.json",
        {
            "channels": 1,
            "height": 8,
            "width": 8,
            "resize": "stretch",
            "full_scale": 255.0,
            "mean": info["mean"],
            "std": info["std"],
        },
    )
    write_json(build / "baseline" / "metrics.json", dict.fromkeys(("teacher", "student", "pruned"), METRICS))
    write_json(build / "calibration" / "manifest.json", {"digest": "c" * 64})
    write_json(build / "metrics" / f"{TARGET}.json", {**METRICS, "sha256": {"model.onnx": sha256_bytes(weights)}})
    write_json(build / "verdicts" / f"{TARGET}.json", verdict("passed"))
    (build / "targets" / TARGET).mkdir(parents=True)
    (build / "targets" / TARGET / "model.onnx").write_bytes(weights)
    write_json(build / "targets" / TARGET / "quantize.json", {"quantizer": "none"})
    return root


@pytest.fixture
def project(built, tmp_path, monkeypatch) -> Path:
    """A copy of the project with the target's bundle exported; the current folder is there."""
    root = tmp_path / "project"
    shutil.copytree(built, root, copy_function=shutil.copyfile)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # mlflow.set_tracking_uri writes into it
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))  # of the processes that we start
    export(root)
    return root


def export(root: Path, **changes) -> Path:
    """Export the bundle of the target, with `verdict`, `metrics` or `target` changed; return its folder."""
    from pipelines import export as stage
    from pipelines.files import read_json, write_json

    build = root / "build"
    if "verdict" in changes:
        write_json(build / "verdicts" / f"{TARGET}.json", verdict(changes["verdict"]))
    if "metrics" in changes:
        path = build / "metrics" / f"{TARGET}.json"
        write_json(path, {**read_json(path), **changes["metrics"]})
    stage.main(
        TARGET,
        build / "targets" / TARGET,
        build / "metrics" / f"{TARGET}.json",
        build / "verdicts" / f"{TARGET}.json",
        build / "onnx",
        build / "data",
        build / "calibration",
        build / "bundles" / TARGET,
    )
    return build / "bundles" / TARGET


def verdict(word: str) -> dict:
    """Return a verdict with one gate."""
    value = {"passed": 0.1, "failed": 2.5, "inconclusive": 0.4}[word]
    reason = f"drop_fp32 is {value}; at most 0.5 is wanted"
    gate = {"metric": "drop_fp32", "bound": "max", "threshold": 0.5, "value": value, "low": 0.0, "high": value}
    return {
        "verdict": word,
        "gates": [{**gate, "result": word, "reason": reason}],
    }


def linear(data: Path) -> bytes:
    """Train a logistic regression on the prepared training images; return it as ONNX, N x 1 x 8 x 8 to N x 10."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.linear_model import LogisticRegression

    from pipelines.data import Dataset, Input

    dataset = Dataset(data)
    prepare = dataset.preprocess(Input(height=8, width=8, resize="stretch"))
    rows = dataset.rows("train")
    inputs = np.stack([prepare(dataset.image(row)).ravel() for row in rows])
    fitted = LogisticRegression(max_iter=300).fit(inputs, dataset.labels[rows])
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["outputs"])],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["N", 10])],
        [
            numpy_helper.from_array(fitted.coef_.T.astype(np.float32), "w"),
            numpy_helper.from_array(fitted.intercept_.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
