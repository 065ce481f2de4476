"""Every runtime, every precision: near FP32, the same bytes each time, and loadable from its source alone."""

import inspect
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipelines import calibrate, fp32, models, runtimes
from pipelines.calibration import Calibration
from pipelines.files import sha256_file, write_json
from tests import line
from tests.pipelines.test_models import OPTIONS

OPTIONS_OF = {
    "openvino": {
        "preset": "performance",
        "bias_correction": "fast",
        "ranges": "mean_minmax",
        "smooth_quant": False,
    },
    "onnxruntime": {
        "ranges": "minmax",
        "per_channel": True,
        "activations": "u8",
        "operators": "all",
        "reduce_range": False,
    },
    "tensorrt": {"ranges": "minmax"},
    "qnn": {"ranges": "minmax", "activations": "u8"},
    "litert": {"activations": "int8", "ranges": "minmax"},
    "coreml": {"weights": "symmetric"},
    "executorch": {"ranges": "minmax", "per_channel": True},
}
MORE = {
    "coreml": [{"weights": "asymmetric"}],
    "litert": [{"activations": "int16"}, {"activations": "float"}],
    "openvino": [{"fuse_activations": False}],
    "qnn": [{"activations": "u16"}],
}
HERE = [r for r in runtimes.names() if not runtimes.missing(runtimes.load(r))]
EVERY = [(r, p) for r in HERE for p in runtimes.load(r).PRECISIONS]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A prepared dataset, a small network in ONNX, and the calibration of it."""
    root = line.copy(tmp_path_factory.mktemp("runtimes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        line.run(root, "python", "-m", "pipelines.prepare", "build/data")
        torch.manual_seed(0)
        model = models.build(OPTIONS["separable"], 1, 10).eval()
        fp32.export(model, (1, 16, 16), root / "build/onnx/pruned.onnx")
        info = {"channels": 1, "height": 16, "width": 16, "resize": "stretch", "full_scale": 255.0}
        write_json(root / "build/onnx/preprocess.json", {**info, "mean": [0.3], "std": [0.35]})
        write_json(root / "build/onnx/model.json", {"task": "classification"})
        calibrate.main(root / "build/data", root / "build/onnx", root / "build/calibration")
    return root


def make(project, name, precision, out):
    runtime = runtimes.load(name)
    calibration = Calibration(project / "build/data", project / "build/calibration")
    options = runtime.Options(**OPTIONS_OF[name]) if precision == "int8" else None
    source = project / "build/onnx/pruned.onnx"
    done = runtime.quantize(source, calibration if precision == "int8" else None, precision, options, out)
    return runtime, calibration, done


def test_every_runtime_is_tested():
    assert set(OPTIONS_OF) == set(runtimes.names())


@pytest.mark.parametrize("name", runtimes.names())
def test_what_a_runtime_needs_is_installed(name):
    if lacking := runtimes.missing(runtimes.load(name)):
        pytest.skip(f"{name} is not tested: {', '.join(lacking)} not installed; run `make targets`")


@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_answers_as_fp32_does_in_any_batch_and_with_the_same_bytes(project, tmp_path, name, precision):
    runtime, calibration, done = make(project, name, precision, tmp_path / "one")
    assert done["quantizer"] != "none" if precision == "int8" else done == {"quantizer": "none"}
    make(project, name, precision, tmp_path / "two")
    for file in runtime.FILES:
        assert sha256_file(tmp_path / "one" / file) == sha256_file(tmp_path / "two" / file)
    batch = np.concatenate(list(calibration.inputs(32)))
    fp32 = runtimes.load("onnxruntime").load(project / "build/onnx/pruned.onnx", 1)(batch)[0]
    predict = runtime.load(tmp_path / "one" / runtime.FILES[0], 1)
    found = predict(batch)[0]
    assert found.shape == fp32.shape and found.dtype == np.float32
    tolerance = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.15}[precision]
    assert np.abs(found - fp32).max() <= tolerance * np.abs(fp32).max()
    for count in (1, 3):
        assert np.allclose(predict(batch[:count])[0], found[:count], atol=tolerance * np.abs(fp32).max() / 10)
    if precision == "int8":
        files = b"".join((tmp_path / "one" / file).read_bytes() for file in runtime.FILES)
        assert calibration.digest.encode() in files, "a stale artifact is found by the digest in it"


@pytest.mark.parametrize("name", HERE)
def test_int8_bytes_are_the_same_in_another_process(project, tmp_path, name):
    runtime, *_ = make(project, name, "int8", tmp_path / "here")
    declared = {"runtime": name, "precision": "int8", "device": "cpu", "search": "none", "aim": {}, "gates": {}}
    line.change(project, {"targets": {f"{name}-int8": {**declared, "options": OPTIONS_OF[name]}}})
    words = [f"{name}-int8", "build/data", "build/onnx", "build/calibration", str(tmp_path / "there")]
    line.run(project, "python", "-m", "pipelines.quantize", *words)
    for file in runtime.FILES:
        assert sha256_file(tmp_path / "here" / file) == sha256_file(tmp_path / "there" / file)


@pytest.mark.parametrize("name", HERE)
def test_load_travels_as_source_and_needs_numpy_and_the_runtime_alone(project, tmp_path, name):
    if name == "coreml" and sys.platform != "darwin":
        pytest.skip("Core ML runs on macOS alone")
    runtime, calibration, _ = make(project, name, "int8", tmp_path / "artifact")
    batch = next(calibration.inputs(2))
    np.save(tmp_path / "batch.npy", batch)
    unwanted = {"pipelines", "torch", "nncf", "onnx", "ai_edge_quantizer"} - set(runtimes.imports(runtime))
    program = "\n".join(
        [
            "from __future__ import annotations",
            "import sys, numpy as np",
            inspect.getsource(runtime.load),
            "np.save('out.npy', load('artifact/' + sys.argv[1], 1)(np.load('batch.npy'))[0])",
            f"assert not {unwanted} & set(sys.modules)",
        ]
    )
    (tmp_path / "device.py").write_text(program)
    subprocess.run([sys.executable, "device.py", runtime.FILES[0]], cwd=tmp_path, check=True)
    wanted = runtime.load(tmp_path / "artifact" / runtime.FILES[0], 1)(batch)[0]
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)


@pytest.mark.parametrize(("name", "change"), [(n, c) for n in MORE if n in HERE for c in MORE[n]])
def test_other_bits_of_activations_answer_as_fp32_does(project, tmp_path, name, change):
    runtime = runtimes.load(name)
    frozen = Calibration(project / "build/data", project / "build/calibration")
    source = project / "build/onnx/pruned.onnx"
    runtime.quantize(source, frozen, "int8", runtime.Options(**{**OPTIONS_OF[name], **change}), tmp_path)
    batch = next(frozen.inputs(8))
    fp32 = runtimes.load("onnxruntime").load(source, 1)(batch)[0]
    found = runtime.load(tmp_path / runtime.FILES[0], 1)(batch)[0]
    assert np.abs(found - fp32).max() <= 0.05 * np.abs(fp32).max()


def calibrated(project, root, monkeypatch, *layers):
    """Return a network of `layers` in ONNX, and its calibration on the project's images."""
    fp32.export(torch.nn.Sequential(*layers).eval(), (1, 16, 16), root / "onnx/pruned.onnx")
    shutil.copyfile(project / "build/onnx/preprocess.json", root / "onnx/preprocess.json")
    monkeypatch.chdir(project)
    calibrate.main(project / "build/data", root / "onnx", root / "calibration")
    return root / "onnx/pruned.onnx", Calibration(project / "build/data", root / "calibration")


def test_what_onnxruntime_takes_apart_stays_in_float_and_the_rest_is_int8(project, tmp_path, monkeypatch):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3), torch.nn.Hardswish(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()]
    source, frozen = calibrated(project, tmp_path, monkeypatch, *layers)
    runtime = runtimes.load("onnxruntime")
    runtime.quantize(source, frozen, "int8", runtime.Options(**OPTIONS_OF["onnxruntime"]), tmp_path / "out")
    found = runtime.operators(tmp_path / "out" / "model.onnx", [1, 16, 16])
    assert [o.precision for o in found] == ["int8", "int8"]


class Attention(torch.nn.Module):
    """Every place with every other, as at the end of YOLO26's backbone: in ONNX its shapes follow from the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        places = x.view(batch, channels, height * width)
        return (places @ (places.transpose(1, 2) @ places).softmax(2)).view(batch, channels, height, width)


@pytest.mark.parametrize("name", HERE)
def test_weights_of_half_a_megabyte_and_shapes_that_follow_from_the_batch(project, tmp_path, monkeypatch, name):
    """The AI Edge Quantizer writes what is larger than 256 KiB behind the flatbuffer."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3, 2), torch.nn.ReLU(), Attention(), torch.nn.Flatten(), torch.nn.Linear(392, 1300)]
    source, frozen = calibrated(project, tmp_path, monkeypatch, *layers)
    runtime, batch = runtimes.load(name), next(frozen.inputs(8))
    runtime.quantize(source, frozen, "int8", runtime.Options(**OPTIONS_OF[name]), tmp_path / "out")
    files = b"".join((tmp_path / "out" / file).read_bytes() for file in runtime.FILES)
    assert len(files) > 500_000 and frozen.digest.encode() in files
    fp32 = runtimes.load("onnxruntime").load(source, 1)(batch)[0]
    found = runtime.load(tmp_path / "out" / runtime.FILES[0], 1)(batch)[0]
    assert found.shape == fp32.shape and np.abs(found - fp32).max() <= 0.1 * np.abs(fp32).max()


def test_nncf_clips_no_channel_of_a_depthwise_convolution(project, tmp_path, monkeypatch):
    import openvino

    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU())
    source, frozen = calibrated(project, tmp_path, monkeypatch, *first, torch.nn.Conv2d(8, 8, 3, groups=8))
    runtime = runtimes.load("openvino")
    runtime.quantize(source, frozen, "int8", runtime.Options(**OPTIONS_OF["openvino"]), tmp_path / "out")
    graph = openvino.Core().read_model(tmp_path / "out" / runtime.FILES[0])
    (depthwise,) = [o for o in graph.get_ops() if o.get_type_name() == "GroupConvolution"]
    quantizer = depthwise.input_value(0).get_node()
    assert quantizer.get_type_name() == "FakeQuantize"
    highs = np.ravel(quantizer.input_value(2).get_node().data)
    with torch.no_grad():
        wanted = first(torch.from_numpy(np.concatenate(list(frozen.inputs())))).amax((0, 2, 3)).numpy()
    assert len(highs) == 8 and (highs >= 0.99 * wanted).all()
