"""A detector whose head INT8 ruins, one scale for scores and boxes: noticed whatever is declared, and repaired."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import adopt, calibrate, evaluation, fp32, prepare, quantize, runtimes
from pipelines.data import Dataset, Input
from pipelines.files import write_json
from pipelines.judge import always, judge
from tests.pipelines.test_runtimes import OPTIONS_OF

pytestmark = pytest.mark.slow
SIDE, CELL, SCALE = 20, 4, 3000.0
PARAMS = {
    "task": "detection",
    "seed": 0,
    "data": {
        "source": {"format": "coco", "path": "set", "annotations": {"all": "a.json"}, "images": {"all": "."}},
        "channels": 3,
        "bits": 8,
        "splits": {"val": 0.3, "test": 0.3},
        "max_rejected": 0.0,
    },
    "calibrate": {"images": 16, "bins": 256, "percentile": 99.9},
    "measure": {"threads": 1, "warmup": 1, "runs": 20, "batch": 8, "resamples": 100, "elsewhere": 16},
}
RUNTIMES = ["onnxruntime", "openvino"]


def squares(root):
    """Write images of 64 x 64 with a red or a green square, or both, whose centres are those of the model's cells."""
    rng, said = np.random.default_rng(0), {"images": [], "annotations": [], "categories": []}
    (root / "set").mkdir()
    for n in range(60):
        pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        for kind in range(2) if n % 3 == 0 else [n % 2]:
            x, y = 32 * kind + CELL * int(rng.integers(0, 3)), CELL * int(rng.integers(0, 11))
            pixels[y : y + SIDE, x : x + SIDE] = (40, 220, 40) if kind else (220, 40, 40)
            box = {"bbox": [x, y, SIDE, SIDE], "category_id": kind, "image_id": n}
            said["annotations"].append({"id": len(said["annotations"]) + 1, **box})
        Image.fromarray(pixels).save(root / "set" / f"{n:02}.png")
        said["images"].append({"id": n, "file_name": f"{n:02}.png", "width": 64, "height": 64})
    said["categories"] = [{"id": n, "name": name} for n, name in enumerate(("red", "green"))]
    (root / "set" / "a.json").write_text(json.dumps(said))


def joined():
    """Return a detector of such squares that needs no training: scores and boxes pass through one convolution."""
    import torch
    from torch import nn

    class Joined(nn.Module):
        outputs = ("scores", "boxes")

        def __init__(self):
            super().__init__()
            self.scores, self.boxes = (nn.Conv2d(3, n, SIDE, CELL, (SIDE - CELL) // 2) for n in (2, 4))
            self.join = nn.Conv2d(6, 6, 1)

        def forward(self, images):
            found = self.join(torch.cat([self.scores(images), self.boxes(images)], 1))
            return found[:, :2], found[:, 2:] / SCALE

    model = Joined().requires_grad_(False)
    colours = torch.tensor([[1.0, -1, 0], [-1, 1, 0]])[:, :, None, None]
    model.scores.weight.copy_((20 * colours / SIDE**2).expand_as(model.scores.weight))
    model.scores.bias.fill_(-10)
    model.boxes.weight.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    model.boxes.bias.fill_(SCALE * np.log(SIDE / 2 / CELL))
    model.join.weight.copy_(torch.eye(6)[:, :, None, None])
    model.join.bias.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("collapse")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        squares(root)
        (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        prepare.main(root / "data")
        size = Input(height=64, width=64, resize="letterbox", mean=[0.0] * 3, std=[1.0] * 3)
        write_json(root / "onnx/preprocess.json", Dataset(root / "data").preprocess(size).to_dict())
        write_json(root / "onnx/model.json", {"task": "detection", "classes": ["green", "red"], "channels": 3})
        fp32.export(joined(), (3, 64, 64), root / "onnx/pruned.onnx")
        calibrate.main(root / "data", root / "onnx", root / "calibration")
    return root


def made(root, name, out, search, aim):
    """Quantize a target; return what was done, and the verdict on the test split."""
    target = {"runtime": name, "precision": "int8", "device": "cpu", "options": OPTIONS_OF[name], "gates": {}}
    targets = {"t": {**target, "search": search, "aim": aim}}
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "targets": targets}))
    quantize.main("t", root / "data", root / "onnx", root / "calibration", out)
    test, runtime = evaluation.read(root / "data", root / "onnx"), runtimes.load(name)
    reference = test.outputs(runtimes.load("onnxruntime").load(root / "onnx/pruned.onnx", 1))
    outputs = test.outputs(runtime.load(out / runtime.FILES[0], 1))
    share = evaluation.int8_share(runtime.operators(out / runtime.FILES[0], test.shape))
    metrics = {"precision": "int8", "int8_share": share, "calibration_overlap": 0}
    metrics |= {"agreement": test.task.agreement(reference, outputs), **test.drop("fp32", reference, outputs)}
    assert test.score(reference)["mAP50-95"] == pytest.approx(1)
    return json.loads((out / "quantize.json").read_text()), metrics, judge(metrics, always(metrics))


@pytest.mark.parametrize("name", RUNTIMES)
def test_without_a_search_or_a_gate_a_collapsed_head_fails_and_says_what_to_do(project, monkeypatch, tmp_path, name):
    monkeypatch.chdir(project)
    _, metrics, verdict = made(project, name, tmp_path / "out", "none", {})
    assert metrics["kept_fp32"] < 0.5 and metrics["agreement"] < 0.5
    assert verdict["verdict"] == "failed"
    (reason,) = [g["reason"] for g in verdict["gates"] if g["result"] == "failed"]
    assert reason.endswith(
        "INT8 has lost what FP32 knows, and a search (`search: fast`) finds the operators to keep in float"
    )


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_search_repairs_it_though_its_aim_is_of_speed_alone(project, monkeypatch, tmp_path, name):
    monkeypatch.chdir(project)
    runtime = runtimes.load(name)
    declared = runtime.Options(**OPTIONS_OF[name])
    monkeypatch.setattr(runtime, "candidates", lambda options, search: [declared])
    monkeypatch.setattr("pipelines.search.choose", lambda tried, aim: (tried[1], "the test's choice"))
    done, metrics, verdict = made(project, name, tmp_path / "out", "fast", {"speedup": {"min": 1.0}})
    plain, repaired = done["tried"][:2]
    assert plain["agreement"] < 0.5 and repaired["agreement"] > 0.9 and repaired["drop_fp32"] < 5
    assert any("join" in name for name in done["kept"]) and done["kept"] == repaired["kept"]
    assert metrics["agreement"] > 0.9 and metrics["drop_fp32"] < 5 and verdict["verdict"] == "passed"


def test_the_same_detector_in_a_file_of_candidates_scores_what_it_scored(project, monkeypatch, tmp_path):
    import torch

    class Candidates(torch.nn.Module):
        """Centres and sides in pixels above the scores of each cell, as YOLO exports them."""

        def __init__(self):
            super().__init__()
            self.net = joined()

        def forward(self, images):
            scores, sides = self.net(images)
            left, top, right, bottom = (sides.exp() * CELL).unbind(1)
            y, x = torch.meshgrid(*[torch.arange(64 // CELL) * CELL + CELL / 2] * 2, indexing="ij")
            boxes = torch.stack([x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], 1)
            return torch.cat([boxes.flatten(2), scores.sigmoid().flatten(2)], 1)

    monkeypatch.chdir(project)
    axes = {name: {0: "N"} for name in ("pixels", "found")}
    torch.onnx.export(
        Candidates(), torch.zeros(1, 3, 64, 64), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17,
        input_names=["pixels"], output_names=["found"], dynamic_axes=axes,
    )  # fmt: skip
    boxes = {"output": None, "corners": "cxcywh", "unit": "pixels", "overlap": 0.3}
    student = {"family": "onnx", "path": "m.onnx", "layout": "nchw", "order": "rgb", "output": None,
               "scores": "probabilities", "classes": None, "boxes": boxes}  # fmt: skip
    size = {"height": 64, "width": 64, "resize": "letterbox", "mean": [0.0] * 3, "std": [1.0] * 3}
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "student": student, "input": size}))
    adopt.main(tmp_path / "m.onnx", project / "data", tmp_path / "onnx")
    test = evaluation.read(project / "data", tmp_path / "onnx")
    outputs = test.outputs(runtimes.load("onnxruntime").load(tmp_path / "onnx/pruned.onnx", 1))
    assert test.score(outputs)["mAP50-95"] == pytest.approx(1)
    assert test.task.agreement(outputs, outputs) == pytest.approx(1)
