"""Five bands of 16 bits through the whole line: a drone's camera whose fifth band alone tells the classes apart."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from pipelines import params, runtimes
from pipelines.data import Dataset
from pipelines.files import read_json
from tests import line

BANDS = 5
CLASSES = ("bare", "crop")
SETTINGS = {
    "contract": {
        "channels": {"value": BANDS},
        "bits": {"value": 16},
        "brightness": {"min": 0.0, "max": 1.0},
        "per_class": {"min": 5},
    },
    "train": {"epochs": 3, "batch": 16},
    "distill": {"schedule": {"epochs": 5, "batch": 16}},
    "prune": {"ratio": 0.2, "schedule": {"epochs": 3, "batch": 16}},
    "calibrate": {"images": 16},
    "export": {"golden": 8},
}
pytestmark = pytest.mark.slow


def field(number: int) -> np.ndarray:
    """Return an image of field `number`, H x W x BANDS, uint16: crops are bright in the near infrared."""
    random = np.random.default_rng(number)
    image = random.integers(2000, 12000, (20, 24, BANDS), np.uint16)
    image[:, :, 4] += np.uint16(30000 if number % 2 else 4000)
    return image


def fields(root: Path, count: int) -> None:
    """Write images in turn as a TIFF of bands, a TIFF of pages, and an array."""
    for n in range(count):
        file = root / CLASSES[n % 2] / f"{n:03d}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = field(n)
        if n % 3 == 0:
            tifffile.imwrite(file.with_suffix(".tif"), image, photometric="minisblack", planarconfig="contig")
        elif n % 3 == 1:
            tifffile.imwrite(file.with_suffix(".tiff"), image.transpose(2, 0, 1), photometric="minisblack")
        else:
            np.save(file.with_suffix(".npy"), image)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = line.copy(tmp_path_factory.mktemp("fields"), SETTINGS)
    fields(root / "fields", 150)
    found = params.read(root / "params.yaml")
    found["data"] |= {"source": {"format": "folder", "path": "fields"}, "channels": BANDS, "bits": 16}
    (root / "params.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    line.build_here(root)
    return root


TARGETS = params.read(line.ROOT / "params.yaml")["targets"]


def test_the_bands_arrive_as_they_are(root):
    dataset = Dataset(root / "build/data")
    assert len(dataset.index) == 150 and dataset.info["channels"] == BANDS and dataset.info["rejected"] == 0
    for row, path in enumerate(dataset.column("path")[:6]):
        np.testing.assert_array_equal(dataset.image(row), field(int(Path(path).stem)))
    assert read_json(root / "build/onnx/preprocess.json")["full_scale"] == 65535


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_takes_them_and_its_bundle_runs_alone(root, target, tmp_path):
    metrics = read_json(root / f"build/metrics/{target}.json")
    assert metrics["accuracy"] > 0.9, "the fifth band tells all"
    assert read_json(root / f"build/verdicts/{target}.json")["gates"]
    np.save(tmp_path / "crop.npy", field(1001))
    np.save(tmp_path / "bare.npy", field(1002))
    found = predict(root, target, tmp_path, tmp_path / "crop.npy", tmp_path / "bare.npy")
    assert [one["label"] for one in found] == ["crop", "bare"]


def test_a_bundle_takes_tiffs_where_tifffile_is(root):
    program = f"build/bundles/{next(iter(TARGETS))}/predict.py"
    done = line.run(root, "python", program, "fields/bare/000.tif", "fields/crop/001.tiff")
    assert [json.loads(text)["label"] for text in done.stdout.splitlines()] == ["bare", "crop"]


def predict(root: Path, target: str, tmp_path: Path, *images: Path) -> list[dict]:
    """Run a bundle's program where nothing can be imported but numpy and what the runtime needs."""
    bare = tmp_path / "bare"
    bare.mkdir()
    runtime = runtimes.load(TARGETS[target]["runtime"])
    for name in ("numpy", "numpy.libs", *runtimes.imports(runtime), *NEEDED):
        for folder in map(Path, sys.path):
            if (folder / name).is_dir() and not (bare / name).exists():
                (bare / name).symlink_to(folder / name)
    program = root / f"build/bundles/{target}/predict.py"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bare)}
    python = [sys.executable, "-S"]  # without site-packages
    assert subprocess.run([*python, "-c", "import PIL"], env=environment, capture_output=True).returncode
    done = subprocess.run([*python, program, *images], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(text) for text in done.stdout.splitlines()]


# What the packages of runtimes import on their own account.
NEEDED = [name for name in ("flatbuffers", "packaging", "google") if find_spec(name)]
