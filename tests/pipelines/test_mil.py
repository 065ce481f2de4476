"""Core ML programs computed by torch: the same answers as the network that was converted."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines import mil, runtimes
from pipelines.stage import StageError
from tests.pipelines.test_runtimes import make, project  # noqa: F401 - project is a fixture

if lacking := runtimes.missing(runtimes.load("coreml")):
    pytest.skip(f"{', '.join(lacking)} not installed; run `make targets`", allow_module_level=True)


class Many(nn.Module):
    """Operators of detectors and of small transformers, one after the other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=2, groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.norm = nn.LayerNorm(8)
        self.slope = nn.PReLU(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = functional.silu(self.stem(x))
        a, b = functional.hardswish(self.deep(x)).chunk(2, 1)
        x = torch.cat([functional.gelu(a), torch.sigmoid(b)], 1)
        x = self.slope(x + functional.max_pool2d(x, 3, stride=1, padding=1))
        x = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        x = functional.relu6(self.up(functional.pad(x, (1, 1, 0, 0)))[:, :, 1:-1, ::2])
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        weights = torch.softmax(tokens @ tokens.transpose(1, 2) / 4, -1)
        tokens = (weights @ tokens).clamp(-2, 2).square().add(1).sqrt()
        scores, places = tokens.mean(2).topk(4, 1)
        chosen = tokens.gather(1, places[..., None].expand(-1, -1, 8))
        return self.head(torch.tanh(chosen)), scores * torch.exp(-scores)


def converted(module, shape, folder):
    tools = mil.coremltools()
    with mil.silence():
        exported = torch.export.export(module.eval(), (torch.zeros(shape),)).run_decompositions({})
        model = tools.convert(exported, minimum_deployment_target=tools.target.iOS16)
        model.save(str(folder / "model.mlpackage"))
    return folder / "model.mlpackage"


def test_many_operators_answer_as_torch_does(tmp_path):
    torch.manual_seed(0)
    module = Many()
    batch = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    found = mil.load(converted(module, (1, 3, 16, 16), tmp_path), 1)(batch)
    with torch.no_grad():
        wanted = [output.numpy() for output in module(torch.from_numpy(batch))]
    assert len(found) == 2
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape and np.abs(one - other).max() < 2e-2 * np.abs(other).max()


def test_an_operator_that_is_not_known_is_named(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.atan(x)

    with pytest.raises(StageError, match=r"model.mlpackage: Core ML's atan cannot be computed here"):
        mil.load(converted(Odd(), (1, 4), tmp_path), 1)


def test_what_stays_in_float_has_no_int8_weights(project, tmp_path):  # noqa: F811
    runtime, frozen, _ = make(project, "coreml", "int8", tmp_path / "all")
    every = runtime.quantized(tmp_path / "all" / runtime.FILES[0])
    options = runtime.Options(weights="symmetric")
    runtime.quantize(project / "build/onnx/pruned.onnx", frozen, "int8", options, tmp_path / "some", every[:1])
    assert len(every) > 3 and runtime.quantized(tmp_path / "some" / runtime.FILES[0]) == every[1:]


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs on macOS")
def test_a_bundle_says_that_core_ml_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pipelines", None)
    with pytest.raises(OSError, match="Core ML runs on macOS alone"):
        runtimes.load("coreml").load(tmp_path / "Manifest.json", 1)
