"""Quantization-aware training: INT8 is imitated as runtimes have it, and what it ruins is learned anew."""

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from pipelines import calibrate, convert, models, qat, quantize
from pipelines.calibration import Calibration
from pipelines.files import sha256_file
from pipelines.runtimes import onnxruntime
from tests import line
from tests.pipelines.test_runtimes import OPTIONS_OF

STRETCH = 400  # of a quarter of the channels: one range holds them and the others
TARGET = "onnxruntime-int8"


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 5, 2, 2)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.up(x).mean((2, 3)))


def test_layers_see_int8_and_are_left_as_they_were():
    torch.manual_seed(0)
    model, images = Transposed(), torch.randn(8, 3, 6, 6)
    before, said = {k: v.clone() for k, v in model.state_dict().items()}, model(images)
    qat.imitate(model, images)
    seen = []
    handle = model.up.register_forward_hook(lambda layer, given, output: seen.append(given[0].detach()))
    close = model.train()(images)
    handle.remove()
    assert 0 < (close - said).abs().max() < 0.1 * said.abs().max()
    assert 100 < len(seen[0].unique()) <= 256
    weights, plain = model.up.weight.detach(), before["up.weight"]
    for channel in range(5):  # the second axis of a transposed convolution
        step = plain[:, channel].abs().max() / 127
        levels = weights[:, channel] / step
        assert torch.allclose(levels, levels.round(), atol=1e-3)
        assert torch.allclose(weights[:, channel], plain[:, channel], atol=float(step) * 0.51)
    ranges = model.up.get_submodule(qat.IMITATION).activation_post_process
    high = float(ranges.max_val)
    model.eval()(images * 10)
    assert float(ranges.max_val) == high, "no range comes from what is not trained on"
    close.sum().backward()
    assert model.up.parametrizations.weight.original.grad.abs().sum() > 0
    qat.forget(model)
    assert type(model.up) is nn.ConvTranspose2d and set(model.state_dict()) == set(before)
    assert torch.equal(model(images), said)


def unbalance(model):
    """Stretch a quarter of the channels between two convolutions, and shrink their weights after it: as it was."""
    layers = list(model.features)
    places = [n for n, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for one, after in pairwise(places):
            if layers[after].groups == 1:
                layers[one + 1].weight[::4] *= STRETCH
                layers[one + 1].bias[::4] *= STRETCH
                layers[after].weight[:, ::4] /= STRETCH


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Digits, a teacher, and a student that computes what it did with channels of unequal size."""
    shrunk = {"train": {"epochs": 4}, "distill": {"schedule": {"epochs": 6}}}
    root = line.copy(tmp_path_factory.mktemp("qat"), shrunk)
    build = root / "build"
    line.run(root, "python", "-m", "pipelines.prepare", "build/data")
    line.run(root, "python", "-m", "pipelines.train", "build/data", "build/teacher")
    line.run(root, "python", "-m", "pipelines.distill", "build/data", "build/teacher", "build/student")
    model, spec = models.load(build / "student/model.safetensors")
    unbalance(model)
    models.save(build / "pruned/model.safetensors", model, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        convert.main(build / "teacher", build / "student", build / "pruned", build / "onnx")
        calibrate.main(build / "data", build / "onnx", build / "calibration")
    return root


def make(root, out, when, epochs, **target):
    declared = {"runtime": "onnxruntime", "precision": "int8", "device": "cpu", "options": OPTIONS_OF["onnxruntime"]}
    declared |= {"search": "none", "aim": {}, "gates": {}, **target}
    schedule = {"epochs": epochs, "lr": 0.001}
    (root / "params.yaml").write_text((root / "before.yaml").read_text())
    line.change(root, {"targets": {TARGET: declared}, "qat": {"when": when, "schedule": schedule}})
    build = root / "build"
    words = [build / "data", build / "onnx", build / "calibration", out, build / "teacher", build / "pruned"]
    quantize.main(TARGET, *words)
    return json.loads((out / "quantize.json").read_text())


@pytest.fixture
def here(project, monkeypatch):
    """The project as the current folder, with one scheme to try, and the test's choice of what was tried."""
    if not (project / "before.yaml").exists():
        (project / "before.yaml").write_text((project / "params.yaml").read_text())
    monkeypatch.chdir(project)
    monkeypatch.setattr(onnxruntime, "candidates", lambda options, search: [options])
    # Whatever the speed of so small a network: the INT8 that loses least, and errs least.
    monkeypatch.setattr(
        "pipelines.search.choose", lambda tried, aim: (min(int8(tried), key=_lost), "the test's choice")
    )
    return project


def int8(tried):
    return [t for t in tried if t.precision == "int8"]


def _lost(tried):
    return tried.drop_fp32, tried.error


FAST = {"search": "fast", "aim": {"drop_fp32": {"max": 1.0}, "speedup": {"min": 100.0}}}


@pytest.mark.slow
def test_training_recovers_what_int8_ruins_and_training_without_it_does_not(here, tmp_path, monkeypatch):
    made = make(here, tmp_path / "out", "if_needed", 6, **FAST)
    plain = [t for t in made["tried"] if t["precision"] == "int8" and not t["trained"] and not t["kept"]]
    trained = [t for t in made["tried"] if t["trained"]]
    assert len(plain) == 1 and plain[0]["drop_fp32"] > 50
    assert trained[0]["drop_fp32"] < 35 and not trained[0]["kept"] and trained[0]["int8_share"] > 0.9
    assert len(made["training"]) == 6 and {"epoch", "loss", "val_metric"} <= set(made["training"][0])
    assert made["source"] != sha256_file(here / "build/onnx/pruned.onnx")
    frozen = Calibration(here / "build/data", here / "build/calibration")
    assert frozen.digest.encode() in (tmp_path / "out/model.onnx").read_bytes()
    monkeypatch.setattr(qat, "imitate", lambda model, images: None)
    monkeypatch.setattr(qat, "forget", lambda model: None)
    same = make(here, tmp_path / "plain", "if_needed", 6, **FAST)
    without = next(t for t in same["tried"] if t["trained"] and not t["kept"])
    assert without["drop_fp32"] > trained[0]["drop_fp32"] + 20


@pytest.mark.slow
def test_never_trains_nothing_and_always_gives_the_same_bytes_without_a_search(here, tmp_path):
    made = make(here, tmp_path / "never", "never", 1, **FAST)
    assert "training" not in made and not any(t["trained"] for t in made["tried"])
    plain = make(here, tmp_path / "plain", "if_needed", 1)
    assert plain["source"] == sha256_file(here / "build/onnx/pruned.onnx"), "without an aim nothing is needed"
    one, two = (make(here, tmp_path / name, "always", 1) for name in ("one", "two"))
    assert one == two and one["source"] != plain["source"] and len(one["training"]) == 1
    files = [tmp_path / name / "model.onnx" for name in ("one", "two", "plain")]
    assert sha256_file(files[0]) == sha256_file(files[1]) != sha256_file(files[2])
