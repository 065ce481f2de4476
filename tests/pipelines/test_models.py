"""Every model family: builds, saves, loads, and survives pruning."""

import pytest
import torch

from pipelines import models
from pipelines.prune import prune
from pipelines.stage import StageError

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
    "residual": {"family": "residual", "widths": [16, 32], "depths": [1, 2]},
    "separable": {"family": "separable", "stem": 16, "widths": [32, 64], "depths": [1, 2]},
}
SHAPE = (3, 24, 32)


def spec(family):
    return {"model": OPTIONS[family], "channels": SHAPE[0], "classes": ["a", "b", "c", "d"]}


def build(family):
    torch.manual_seed(0)
    return models.build(OPTIONS[family], SHAPE[0], 4).eval()


def given(model, images):
    outputs = model(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_every_family_is_tested():
    assert set(models.names()) == set(OPTIONS)


@pytest.mark.parametrize("family", models.names())
def test_maps_images_to_logits_and_has_features(family):
    model, images = build(family), torch.randn(2, *SHAPE)
    outputs = given(model, images)
    assert [o.shape for o in outputs] == ([(2, 4, 6, 8), (2, 4, 6, 8)] if family == "centers" else [(2, 4)])
    features = model.features(images)
    assert features.ndim == 4 and features.shape[0] == 2


@pytest.mark.parametrize("family", models.names())
def test_comes_back_from_its_file_with_the_same_outputs_and_bytes(family, tmp_path):
    model, images = build(family), torch.randn(2, *SHAPE)
    models.save(tmp_path / "one.safetensors", model, spec(family))
    loaded, read = models.load(tmp_path / "one.safetensors")
    assert read == spec(family)
    assert all(map(torch.equal, given(loaded, images), given(model, images)))
    models.save(tmp_path / "two.safetensors", loaded, read)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize("family", models.names())
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


def test_an_unknown_family_lists_the_known():
    with pytest.raises(StageError, match="no such family 'resnext'; have: centers, residual, separable"):
        models.build({"family": "resnext"}, 3, 4, "teacher")
