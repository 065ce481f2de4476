"""TensorRT's rules: what we make keeps them, and each way to break one is found."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipelines import judge, runtimes, validate
from pipelines.files import read_json, write_json
from pipelines.runtimes import tensorrt
from tests import line
from tests.pipelines.test_runtimes import make, project  # noqa: F401 - project is a fixture


@pytest.fixture(scope="module")
def artifact(project, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("tensorrt")
    make(project, "tensorrt", "int8", folder)
    return folder


def test_what_we_make_keeps_every_rule_and_that_of_a_cpu_does_not(project, artifact, tmp_path):  # noqa: F811
    assert list(tensorrt.rules(artifact / "model.onnx")) == []
    graph = onnx.load(artifact / "model.onnx").graph
    assert sum(n.op_type == "QuantizeLinear" for n in graph.node) >= 5
    make(project, "onnxruntime", "int8", tmp_path)
    broken = " ".join(tensorrt.rules(tmp_path / "model.onnx"))
    assert "the zero point is not an INT8 zero" in broken and "a bias is quantized" in broken


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("negative scale", "the scale is not constant and positive"),
        ("zero point", "the zero point is not an INT8 zero"),
        ("axis", "weights have a scale along axis 1, not 0"),
        ("activations per channel", "activations have a scale per channel"),
    ],
)
def test_each_broken_rule_is_told(artifact, tmp_path, change, said):
    proto = onnx.load(artifact / "model.onnx")
    constants = {i.name: i for i in proto.graph.initializer}
    weights = next(
        n for n in proto.graph.node if n.op_type == "DequantizeLinear" and len(constants[n.input[1]].dims) == 1
        and n.input[0] in constants and len(constants[n.input[0]].dims) == 4
    )  # fmt: skip
    first = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear")
    if change == "axis":
        next(a for a in weights.attribute if a.name == "axis").i = 1
    else:
        place = {"negative scale": first.input[1], "zero point": first.input[2]}.get(change, first.input[1])
        value = {
            "negative scale": np.float32(-0.1),
            "zero point": np.int8(3),
            "activations per channel": np.full(4, 0.1, np.float32),
        }[change]
        constants[place].CopyFrom(numpy_helper.from_array(np.asarray(value), place))
    onnx.save(proto, tmp_path / "broken.onnx")
    assert any(said in rule for rule in tensorrt.rules(tmp_path / "broken.onnx"))


def test_the_build_command_names_the_input_and_its_shape(artifact):
    command = (artifact / "build-engine.sh").read_text()
    assert "trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.engine" in command
    assert "--maxShapes=images:${BATCH:-32}x1x16x16" in command


def test_the_verdict_says_that_it_was_not_run(project, artifact, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(project)
    gates = {"agreement": {"min": 0.0}, "speedup": {"min": 1.0}}
    entry = {"runtime": "tensorrt", "precision": "int8", "device": "cpu", "search": "none", "aim": {}, "gates": gates}
    line.change(project, {"targets": {"tensorrt-int8": {**entry, "options": {"ranges": "minmax"}}}})
    write_json(artifact / "quantize.json", {"precision": "int8", "kept": []})
    data, onnx_folder, frozen = (project / "build" / n for n in ("data", "onnx", "calibration"))
    source = onnx_folder / "pruned.onnx"
    (onnx_folder / "teacher.onnx").write_bytes(source.read_bytes())
    from pipelines import evaluation

    test = evaluation.read(data, onnx_folder)
    fp32 = test.outputs(runtimes.load("onnxruntime").load(source, 1))
    for name in ("pruned", "teacher"):
        evaluation.write_outputs(tmp_path / f"{name}.npz", fp32)
    metrics, verdict = tmp_path / "metrics.json", tmp_path / "verdict.json"
    validate.main("tensorrt-int8", data, onnx_folder, tmp_path, frozen, artifact, metrics, tmp_path / "out.npz")
    found = read_json(metrics)
    assert found["agreement"] > 0.8 and found["p50_ms"] is None and found["speedup"] is None
    judge.main("tensorrt-int8", metrics, verdict)
    said = json.loads(verdict.read_text())
    assert said["verdict"] == "inconclusive" and said["note"].startswith("not run on tensorrt: its answers are those")
    assert {g["metric"]: g["result"] for g in said["gates"]}["speedup"] == "inconclusive"
