"""Training: resumed exactly, augmented as declared, distilled as published."""

import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pipelines import training
from pipelines.distillation import attention_distance
from pipelines.files import sha256_file
from pipelines.tasks import classification
from pipelines.training import Augment
from tests import line

STILL = Augment(rotate=0, shift=0, scale=0, flip=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = line.copy(tmp_path_factory.mktemp("training"), {"train": {"epochs": 4}})
    line.run(root, "python", "-m", "pipelines.prepare", "build/data")
    return root


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_in_the_same_weights(project):
    line.run(project, "python", "-m", "pipelines.train", "build/data", "build/whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", "build/data", "build/resumed"],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = project / training.CHECKPOINTS
    while not list(folder.glob("train-*.safetensors")):
        assert process.poll() is None, "ended before a checkpoint was seen; give it more epochs"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project / "build/resumed").exists()
    done = line.run(project, "python", "-m", "pipelines.train", "build/data", "build/resumed")
    assert "going on after epoch" in done.stdout
    assert re.search(r"train: \d+\.\d% of the training time spent waiting for images", done.stdout)
    for name in ("model.safetensors", "curves.csv"):
        assert sha256_file(project / "build/resumed" / name) == sha256_file(project / "build/whole" / name)
    assert not list(folder.glob("*")), "the checkpoint of a finished stage is removed"


def test_a_checkpoint_of_other_settings_is_not_taken_up(project, monkeypatch):
    monkeypatch.chdir(project)
    setup = training.prepare(project / "build/data")
    model = torch.nn.Linear(2, 2)
    one = training.Schedule(epochs=1, batch=8, lr=0.1, weight_decay=0.0, warmup=0.0)
    key = training._key(model, setup, one)
    assert key == training._key(model, setup, one)
    assert key != training._key(model, setup, one.model_copy(update={"lr": 0.2}))


def test_without_augmentation_images_stay_as_they_are():
    images = torch.rand(3, 2, 8, 12)
    assert torch.allclose(training.warp(images, training.draw(images, STILL, torch.Generator())), images, atol=1e-5)


def test_flip_mirrors_left_and_right_and_nothing_else():
    images = torch.rand(64, 1, 6, 9)
    options = STILL.model_copy(update={"flip": True})
    changed = training.warp(images, training.draw(images, options, torch.Generator().manual_seed(0)))
    mirrored = [torch.allclose(c, i.flip(-1), atol=1e-5) for c, i in zip(changed, images, strict=True)]
    same = [torch.allclose(c, i, atol=1e-5) for c, i in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 10 < sum(mirrored) < 54


def test_rotation_keeps_circles_round_in_images_that_are_not_square():
    y, x = np.mgrid[:40, :80]
    disc = torch.from_numpy((np.hypot(y - 19.5, x - 39.5) < 12).astype(np.float32))[None, None].repeat(8, 1, 1, 1)
    options = STILL.model_copy(update={"rotate": 180.0})
    turned = training.warp(disc, training.draw(disc, options, torch.Generator().manual_seed(0)))
    assert float((turned - disc).abs().mean()) < 0.01


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_loader_gives_what_a_device_will_see(project, monkeypatch, dtype):
    monkeypatch.chdir(project)
    setup = training.prepare(project / "build/data")
    rows = setup.dataset.rows("val")[:5]
    image = setup.dataset.image
    monkeypatch.setattr(
        setup.dataset, "image", lambda row: image(row).astype(dtype) * (1 if dtype is np.uint8 else 200)
    )
    ((_, batch),) = training.Pixels(setup).batches(rows, 8)
    wanted = np.stack([setup.preprocess(setup.dataset.image(row)) for row in rows])
    assert np.allclose(batch.numpy(), wanted, atol=1e-5)


def test_kept_images_are_those_of_the_first_epoch_and_come_from_no_other_process(project, monkeypatch):
    monkeypatch.chdir(project)
    pixels = training.Pixels(training.prepare(project / "build/data"))
    rows = pixels.dataset.rows("val")
    first = list(pixels.batches(rows, 50))
    waited = pixels.waited
    assert waited > 0 and sorted(pixels.cache) == sorted(rows)
    monkeypatch.setattr(pixels.dataset, "image", lambda row: pytest.fail("decoded again"))
    for (kept, again), (wanted, images) in zip(pixels.batches(rows, 50), first, strict=True):
        assert (kept == wanted).all() and torch.equal(again, images)
    assert pixels.waited > waited


def test_distillation_is_zero_under_the_same_logits_and_as_published_otherwise():
    student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.2, 3.0, -1.0]])
    assert float(classification.distillation(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-6)
    p, q = (torch.softmax(t / 2.0, 1)[0] for t in (teacher, student))
    wanted = 4.0 * sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    assert float(classification.distillation(student, teacher, 2.0)) == pytest.approx(wanted, rel=1e-5)


def test_attention_distance_sees_where_and_not_how_strongly_or_how_finely():
    maps = torch.rand(2, 8, 8, 8)
    assert float(attention_distance(3 * maps, maps)) == pytest.approx(0, abs=1e-6)
    assert float(attention_distance(maps.flip(-1), maps)) > 1e-3
    assert attention_distance(maps, torch.rand(2, 5, 4, 4)).ndim == 0
