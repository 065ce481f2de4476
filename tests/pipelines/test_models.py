"""Every model family: builds, saves, loads, and survives pruning."""

import importlib
import sys

import pytest
import torch

from pipelines import distillation, fp32, models
from pipelines.prune import comes_back, prune
from pipelines.stage import StageError

NETS = "tests.pipelines.nets"
ARGUMENTS = {"wide": 16, "bands": 3, "classes": 4}
OPTIONS = {
    "centers": {
        "family": "centers",
        "stem": 16,
        "widths": [32, 48],
        "depths": [1, 2],
        "separable": False,
        "neck": 32,
        "stride": 4,
    },
    "import": {"family": "import", "path": f"{NETS}.small", "arguments": ARGUMENTS, "features": "stem"},
    "residual": {"family": "residual", "widths": [16, 32], "depths": [1, 2]},
    "ultralytics": {"family": "ultralytics", "model": "yolo26n-cls.yaml", "weights": None, "trainer": {}},
    "separable": {"family": "separable", "stem": 16, "widths": [32, 64], "depths": [1, 2]},
}
TRAINED = [name for name in models.names() if name != "onnx"]  # a finished model
SHAPE = (3, 24, 32)


def needs(*modules):
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{module} does not load: {error}")


def spec(family):
    return {"model": OPTIONS[family], "channels": SHAPE[0], "classes": ["a", "b", "c", "d"]}


def build(family):
    if family == "ultralytics":
        needs("torchvision", "ultralytics")
    torch.manual_seed(0)
    return models.build(OPTIONS[family], SHAPE[0], 4).eval()


def given(model, images):
    outputs = model(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_every_family_is_tested():
    assert set(TRAINED) == set(OPTIONS)


@pytest.mark.parametrize("family", TRAINED)
def test_maps_images_to_logits_and_has_features(family):
    model, images = build(family), torch.randn(2, *SHAPE)
    outputs = given(model, images)
    assert [o.shape for o in outputs] == ([(2, 4, 6, 8), (2, 4, 6, 8)] if family == "centers" else [(2, 4)])
    _, features = distillation._with_features(model, images)
    assert features.ndim == 4 and features.shape[0] == 2


@pytest.mark.parametrize("family", TRAINED)
def test_comes_back_from_its_file_with_the_same_outputs_and_bytes(family, tmp_path):
    model, images = build(family), torch.randn(2, *SHAPE)
    models.save(tmp_path / "one.safetensors", model, spec(family))
    loaded, read = models.load(tmp_path / "one.safetensors")
    assert read == spec(family)
    assert all(map(torch.equal, given(loaded, images), given(model, images)))
    models.save(tmp_path / "two.safetensors", loaded, read)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize("family", TRAINED)
def test_pruned_is_smaller_comes_back_and_still_trains(family, tmp_path):
    model, images = build(family), torch.randn(2, *SHAPE)
    report = prune(model, (1, *SHAPE), 0.5, 4)
    assert report["macs_removed"] >= 0.5 and report["parameters"] < report["parameters_before"]
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]
    models.save(tmp_path / "pruned.safetensors", model, spec(family))
    loaded, _ = models.load(tmp_path / "pruned.safetensors")
    model.eval()
    assert all(map(torch.equal, given(loaded, images), given(model, images)))
    sum(output.sum() for output in given(loaded.train(), images)).backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_a_share_that_cannot_be_pruned_is_refused():
    with pytest.raises(StageError, match=r"prune.ratio: only \d+% of the multiply-adds can be removed"):
        prune(build("separable"), (1, *SHAPE), 0.999, 16)


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(StageError, match="not a checkpoint of the line"):
        models.load(tmp_path / "model.safetensors")


def test_a_finished_model_is_not_trained():
    finished = {"family": "onnx", "path": "m.onnx", "layout": "nchw", "order": "rgb"}
    with pytest.raises(StageError, match=r"student\.family: onnx is a finished model, and is not trained"):
        models.build({**finished, "output": None, "scores": "logits", "classes": None}, 1, 4, "student")


def test_an_unknown_family_lists_the_known():
    known = "centers, import, onnx, residual, separable, ultralytics"
    with pytest.raises(StageError, match=f"no such family 'resnext'; have: {known}"):
        models.build({"family": "resnext"}, 3, 4, "teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "absent_module.net"}, "model.path: absent_module.net: no module 'absent_module' here; install it"),
        ({"path": "nodots"}, "model.path: "),
        ({"path": f"{NETS}.absent"}, f"{NETS}.absent: {NETS} has no 'absent'"),
        ({"path": "tests.pipelines.absent.net"}, "importing tests.pipelines.absent failed: No module named"),
        ({"path": f"{NETS}.no_module", "arguments": {}}, "returned dict, not a torch.nn.Module"),
        ({"path": f"{NETS}.broken", "arguments": {}}, "calling it failed: ValueError: no such variant; see"),
        ({"arguments": {}}, "calling it failed: TypeError"),
        ({"arguments": {**ARGUMENTS, "classes": 1000}}, "no layer gives 4 values, one for each class"),
        ({"features": "neck"}, "features: the model has no submodule 'neck'; have: stem, depthwise"),
        ({"head": "neck"}, "head: the model has no submodule 'neck'; have: stem, depthwise"),
    ],
)
def test_an_unfit_import_is_one_clear_line(changes, message):
    with pytest.raises(StageError) as caught:
        models.build({**OPTIONS["import"], **changes}, SHAPE[0], 4)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_module_beside_the_params_is_found_as_a_program_finds_it(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text("from torch import nn\ndef net(n):\n    return nn.Linear(n, 4)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    built = models.build({"family": "import", "path": "my_own_nets.net", "arguments": {"n": 2}}, 3, 4)
    assert built(torch.ones(1, 2)).shape == (1, 4) and not hasattr(built, "features")


def test_an_architecture_that_is_lost_with_its_widths_is_refused_before_it_is_trained():
    model = build("import")
    comes_back(model, spec("import"), (1, *SHAPE))
    model.net.point.forward = lambda x: -x  # what no file of weights can hold
    with pytest.raises(StageError, match=r"cannot be pruned; set prune\.ratio to 0: .* gives other outputs"):
        comes_back(model, spec("import"), (1, *SHAPE))
    model.net.norm = torch.nn.Identity()
    with pytest.raises(StageError, match=r"cannot be pruned; set prune\.ratio to 0: Error.* in loading state_dict"):
        comes_back(model, spec("import"), (1, *SHAPE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("timm.create_model", {"model_name": "resnet10t", "num_classes": 4, "in_chans": 3}),
        ("timm.create_model", {"model_name": "mobilenetv3_small_050", "num_classes": 4}),
        ("torchvision.models.mobilenet_v2", {"num_classes": 4, "width_mult": 0.25}),
    ],
)
def test_models_of_timm_and_torchvision_are_pruned_and_come_back(path, arguments, tmp_path):
    needs("torchvision", path.partition(".")[0])
    made = {**spec("import"), "model": {"family": "import", "path": path, "arguments": arguments}}
    torch.manual_seed(0)
    model, shape = models.build(made["model"], 3, 4).eval(), (1, 3, 32, 32)
    assert prune(model, shape, 0.2, 4)["macs_removed"] >= 0.2
    comes_back(model, made, shape)
    models.save(tmp_path / "m.safetensors", model, made)
    fp32.export(models.load(tmp_path / "m.safetensors")[0], shape[1:], tmp_path / "m.onnx")
