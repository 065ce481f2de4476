"""Calibration and test images: a copy of a test image is found, whatever was done to it."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines import calibrate, overlap, prepare
from pipelines.calibration import Calibration
from pipelines.data import Dataset
from pipelines.files import write_json
from pipelines.stage import StageError

PARAMS = """\
task: classification
seed: 0
data:
  source: {format: folder, path: source}
  channels: 3
  bits: 8
  splits: {val: 0.2, test: 0.2}
  max_rejected: 0.0
"""


def photograph(seed):
    """A smooth random image, 96 x 96 x 3 in 8 bits."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8))
    return np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC))


def copied(image, how):
    if how == "exact":
        return image
    if how == "smaller":
        return np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS))
    if how == "jpeg":
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=60)
        return np.asarray(Image.open(file))
    return np.clip(image.astype(int) + np.random.default_rng(0).integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(params=["exact", "smaller", "jpeg", "noise"])
def planted(request, tmp_path, monkeypatch):
    """A dataset with a copy of one test image among the training images."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        for label in ("a", "b"):
            folder = tmp_path / "source" / split / label
            folder.mkdir(parents=True)
            for n in range(count):
                seed = hash((split == "test", split == "val", label == "a", n)) % 2**32
                Image.fromarray(photograph(seed)).save(folder / f"{n}.png")
    image = np.asarray(Image.open(tmp_path / "source/test/a/3.png"))
    Image.fromarray(copied(image, request.param)).save(tmp_path / "source/train/b/planted.png")
    (tmp_path / "params.yaml").write_text(PARAMS)
    prepare.main(tmp_path / "build/data")
    return Dataset(tmp_path / "build/data")


def test_the_copy_and_nothing_else_is_found(planted):
    paths = planted.column("path")
    pairs = overlap.copies(planted, planted.rows("train").tolist(), planted.rows("test").tolist())
    assert [(paths[one], paths[other]) for one, other in pairs] == [("train/b/planted.png", "test/a/3.png")]


def test_it_is_never_calibrated_on_and_a_manifest_with_it_is_told(planted, tmp_path):
    preprocess = {"channels": 3, "height": 96, "width": 96, "resize": "stretch", "full_scale": 255.0}
    preprocess |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    manifest = calibrate.manifest(planted, 25, 0, preprocess)
    assert manifest["left_out"] == ["train/b/planted.png"] and len(manifest["images"]) == 24
    write_json(tmp_path / "calibration/manifest.json", manifest)
    assert Calibration(planted.folder, tmp_path / "calibration").overlap() == 0
    row = planted.column("path").tolist().index("train/b/planted.png")
    manifest["images"].append({"path": "p", "content_hash": str(planted.column("content_hash")[row])})
    write_json(tmp_path / "calibration/manifest.json", manifest)
    assert Calibration(planted.folder, tmp_path / "calibration").overlap() == 1
    manifest["images"].append({"path": "gone.png", "content_hash": "0"})
    write_json(tmp_path / "calibration/manifest.json", manifest)
    with pytest.raises(StageError, match=r"gone\.png: is in the calibration manifest but not in the dataset"):
        Calibration(planted.folder, tmp_path / "calibration").overlap()
