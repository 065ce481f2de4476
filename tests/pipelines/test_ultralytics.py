"""YOLO26 and its kin: the split network is the original, weights come in without running a pickle, heads give maps."""

import ast
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines import distillation, fp32, images, models, prepare, qat, runtimes, training
from pipelines.data import Dataset, Input
from pipelines.files import sha256_file
from pipelines.models import ultralytics
from pipelines.prune import comes_back, prune
from pipelines.stage import StageError
from tests.pipelines.test_models import needs

ROOT = Path(__file__).parents[2]
SHAPE = (3, 64, 64)
PARAMS = {
    "task": "detection",
    "seed": 0,
    "data": {
        "source": {"format": "coco", "path": "set", "annotations": {"all": "a.json"}, "images": {"all": "."}},
        "channels": 3,
        "bits": 8,
        "splits": {"val": 0.2, "test": 0.2},
        "max_rejected": 0.0,
    },
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    needs("torchvision", "ultralytics")
    monkeypatch.chdir(tmp_path)


def declared(model, weights=None):
    return {"family": "ultralytics", "model": model, "weights": weights, "trainer": {}}


def original(model):
    """Return a network as Ultralytics builds it, its batch norms as if it were trained."""
    tasks = ultralytics._library("nn.tasks")
    torch.manual_seed(0)
    net = (tasks.ClassificationModel if "cls" in model else tasks.DetectionModel)(model, ch=3, nc=4, verbose=False)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return net.eval()


def saved(net, path):
    torch.save({"model": net, "train_args": {}}, path)
    return {"file": path.name, "sha256": sha256_file(path)}


def boxes(root):
    """Return a setup of twelve images of 64 x 64 with a box or two each, of two classes."""
    rng, lines = np.random.default_rng(0), {"images": [], "annotations": [], "categories": []}
    (root / "set").mkdir()
    for n in range(12):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        for kind in range(1 + n % 2):
            x, y = rng.integers(0, 40, 2).tolist()
            pixels[y : y + 20, x : x + 20] = (220, 40, 40) if kind else (40, 220, 40)
            lines["annotations"].append(
                {"id": len(lines["annotations"]) + 1, "image_id": n, "category_id": kind, "bbox": [x, y, 20, 20]}
            )
        Image.fromarray(pixels).save(root / "set" / f"{n:02}.png")
        lines["images"].append({"id": n, "file_name": f"{n:02}.png", "width": 64, "height": 64})
    lines["categories"] = [{"id": n, "name": name} for n, name in enumerate(("green", "red"))]
    (root / "set" / "a.json").write_text(json.dumps(lines))
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    prepare.main(root / "data")
    dataset = Dataset(root / "data")
    size = Input(height=64, width=64, resize="letterbox", mean=[0.0] * 3, std=[1.0] * 3)
    still = training.Augment(rotate=0, shift=0.1, scale=0.1, flip=True)
    return training.Setup(dataset, dataset.preprocess(size), None, still, 0)


@pytest.mark.parametrize("model", ["yolo26n.yaml", "yolo11n.yaml", "yolov8n.yaml", "yolo26n-cls.yaml"])
def test_with_the_weights_of_a_pt_file_it_gives_what_the_original_gives(model, tmp_path):
    net, images = original(model), torch.randn(2, *SHAPE)
    spec = {"model": declared(model, saved(net, tmp_path / "best.pt")), "channels": 3, "classes": list("abcd")}
    made = models.build(spec["model"], 3, 4).eval()
    models.start(made, spec, "student")
    with torch.inference_mode():
        found, wanted = made(images), net(images)
    if "cls" in model:
        assert torch.equal(found, wanted[1])
        return
    head = wanted[1]["one2one"] if "26" in model else wanted[1]
    assert torch.equal(torch.cat([m.flatten(2) for m in found[::2]], 2), head["scores"])
    sides = net.model[-1].dfl(head["boxes"])
    assert torch.allclose(torch.cat([m.flatten(2) for m in found[1::2]], 2), sides, atol=1e-5)
    assert made.outputs[::2] == ("scores8", "scores16", "scores32")
    assert (made.postprocess["overlap"] is None) == ("26" in model)


class Harmful:
    def __reduce__(self):
        return (open, ("touched", "w"))


def test_a_pickle_runs_nothing(tmp_path):
    torch.save({"model": Harmful()}, tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("bad.pt", "raw.pt"):
        weights = {"file": name, "sha256": sha256_file(tmp_path / name)}
        made = {"model": declared("yolo26n-cls.yaml", weights)}
        with pytest.raises(StageError, match=rf"teacher\.weights\.file: {name}: not taken: ") as caught:
            models.start(models.build(made["model"], 3, 4), made, "teacher")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_weights_that_are_missing_or_others_are_one_clear_line(tmp_path):
    built = models.build(declared("yolo26n-cls.yaml"), 3, 4)

    def start(weights):
        models.start(built, {"model": declared("yolo26n-cls.yaml", weights)}, "teacher")

    weights = saved(original("yolo26n-cls.yaml"), tmp_path / "best.pt")
    with pytest.raises(StageError, match=rf"weights\.sha256: best\.pt has {weights['sha256']}; write that where"):
        start({**weights, "sha256": "0" * 64})
    with pytest.raises(StageError, match=r"sub/none\.pt: no such file; put it beside params\.yaml"):
        start({**weights, "file": "sub/none.pt"})
    with pytest.raises(StageError, match=r"only \d+% of it fits yolo26n-cls\.yaml; name its own architecture"):
        start(saved(original("yolov8n.yaml"), tmp_path / "other.pt"))


def test_options_take_what_is_known_alone():
    for model in ("yolo26n.pt", "../yolo26n.yaml", "https://example.org/yolo26n.yaml"):
        with pytest.raises(StageError, match=r"params\.yaml: student\.model: String should match pattern"):
            models.options(declared(model), "student")
    with pytest.raises(StageError, match=r"student\.trainer: resume: not one of bgr, box"):
        models.options({**declared("yolo26n.yaml"), "trainer": {"resume": True}}, "student")


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics.utils", None)
    with pytest.raises(StageError, match=r"family ultralytics: .*pip install 'quantmill\[yolo\]'"):
        models.build(declared("yolo26n.yaml"), 3, 4)


def test_it_is_imported_in_one_file_and_torchvision_in_none():
    for file in [p for folder in ("pipelines", "registry", "flows") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"ultralytics", "torchvision"} & {name.partition(".")[0] for name in names}, file
        if file.name != "ultralytics.py" or file.parent.name != "models":
            assert 'import_module("ultralytics' not in file.read_text(), file


def test_no_telemetry_and_no_logger_is_left_on():
    models.build(declared("yolo26n-cls.yaml"), 3, 4)
    from ultralytics.utils import SETTINGS
    from ultralytics.utils.events import events

    assert not events.enabled and not any(SETTINGS[name] for name in ultralytics.LOGGERS)


def test_a_broken_image_is_still_refused_and_nothing_is_installed_for_it():
    models.build(declared("yolo26n-cls.yaml"), 3, 4)
    with pytest.raises(images.ImageError, match="not an image in a known format"):
        images.decode_image(b"just text, named .jpg")


@pytest.mark.slow
def test_a_detector_is_trained_distilled_pruned_and_exported(tmp_path):
    setup = boxes(tmp_path)
    schedule = training.Schedule(epochs=1, batch=8, lr=0.001, weight_decay=0.0, warmup=0.0)
    torch.manual_seed(0)
    teacher, student = (models.build(declared("yolo26n.yaml"), 3, 2) for _ in range(2))
    before = {k: v.clone() for k, v in student.state_dict().items()}
    (row,) = training.fit("train", teacher, setup, schedule, None)
    assert row["epoch"] == 1 and row["loss"] > 0 and 0 <= row["val_metric"] <= 1
    weights = distillation.Weights(temperature=1.0, labels=1.0, logits=0.0, features=6.0)
    (distilled,) = distillation.fit("distill", student, teacher, setup, schedule, weights)
    assert distilled["loss"] > 0
    assert any(not torch.equal(v, before[k]) for k, v in student.state_dict().items())
    spec = {**setup.spec(declared("yolo26n.yaml")), "task": "detection"}
    assert prune(student, (1, *SHAPE), 0.2, 8)["macs_removed"] >= 0.2
    comes_back(student, spec, (1, *SHAPE))
    distillation.fit("prune", student, teacher, setup, schedule, weights)
    models.save(tmp_path / "m.safetensors", student, spec)
    fp32.export(models.load(tmp_path / "m.safetensors")[0], SHAPE, tmp_path / "m.onnx")
    assert not list(tmp_path.glob("**/*.pt"))
    litert = runtimes.load("litert")
    if not runtimes.missing(litert):  # whose converter is the strictest
        litert.quantize(tmp_path / "m.onnx", None, "fp32", None, tmp_path / "litert")
        images = np.random.default_rng(0).random((2, *SHAPE), np.float32)
        found = litert.load(tmp_path / "litert" / litert.FILES[0], 1)(images)
        wanted = runtimes.load("onnxruntime").load(tmp_path / "m.onnx", 1)(images)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_a_detector_is_trained_for_int8_and_left_as_it_was(tmp_path):
    setup = boxes(tmp_path)
    schedule = training.Schedule(epochs=2, batch=8, lr=0.001, weight_decay=0.0, warmup=0.0)
    weights = distillation.Weights(temperature=1.0, labels=1.0, logits=0.0, features=6.0)
    torch.manual_seed(0)
    teacher, student, plain = (models.build(declared("yolo26n.yaml"), 3, 2) for _ in range(3))
    plain.load_state_dict(student.state_dict())
    names = set(student.state_dict())
    qat.imitate(student, next(training.Pixels(setup).batches(setup.dataset.rows("train"), 8))[1])
    seen = []
    layer = student.head.one2many["cls_head"][0][-1]
    handle = layer.register_forward_hook(lambda layer, given, output: seen.append(len(given[0].unique())))
    curves = distillation.fit("qat", student, teacher, setup, schedule, weights)
    handle.remove()
    assert len(curves) == 2 and all(np.isfinite(list(row.values())).all() for row in curves)
    assert seen and max(seen) <= 256
    qat.forget(student)
    assert set(student.state_dict()) == names
    assert all(v.isfinite().all() for v in student.state_dict().values())
    distillation.fit("plain", plain, teacher, setup, schedule, weights)
    same = [torch.equal(v, plain.state_dict()[k]) for k, v in student.state_dict().items() if k.endswith("conv.weight")]
    assert sum(same) < len(same) / 10, "it learned with INT8 in sight"
