"""The calibration subset and the activation table: frozen, from training images, in constant memory."""

import json
import sys

import numpy as np
import pytest

from pipelines import calibrate, ranges
from pipelines.calibration import RANGES, Calibration
from pipelines.data import Dataset
from tests import line
from tests.pipelines.test_runtimes import project  # noqa: F401 - a fixture


def test_the_subset_is_of_training_images_spread_over_the_classes(project):  # noqa: F811
    dataset = Dataset(project / "build/data")
    manifest = json.loads((project / "build/calibration/manifest.json").read_text())
    rows = {h: n for n, h in enumerate(dataset.column("content_hash"))}
    chosen = [rows[i["content_hash"]] for i in manifest["images"]]
    assert len(set(chosen)) == 32 and set(chosen) <= set(dataset.rows("train").tolist())
    counts = np.bincount(dataset.labels[chosen], minlength=10)
    assert counts.min() >= 3 and counts.max() <= 4


def test_the_subset_depends_on_seed_count_and_preprocessing_alone(project):  # noqa: F811
    dataset, preprocess = Dataset(project / "build/data"), {"mean": [0.3]}
    one = calibrate.manifest(dataset, 20, 0, preprocess)
    assert one == calibrate.manifest(dataset, 20, 0, preprocess)
    digests = {
        one["digest"],
        calibrate.manifest(dataset, 20, 1, preprocess)["digest"],
        calibrate.manifest(dataset, 21, 0, preprocess)["digest"],
        calibrate.manifest(dataset, 20, 0, {"mean": [0.4]})["digest"],
    }
    assert len(digests) == 4


def test_the_table_has_every_activation_and_ranges_inside_the_extremes(project):  # noqa: F811
    calibration = Calibration(project / "build/data", project / "build/calibration")
    ranges = calibration.activations
    assert "images" in ranges and "outputs" in ranges and len(ranges) > 10
    inputs = np.concatenate(list(calibration.inputs(8)))
    assert ranges["images"]["minmax"] == pytest.approx((float(inputs.min()), float(inputs.max())), rel=1e-5)
    for methods in ranges.values():
        low, high = methods["minmax"]
        assert all(low - 1e-6 <= methods[m][0] <= methods[m][1] <= high + 1e-6 for m in RANGES)


def test_ranges_of_a_known_histogram():
    edges = np.linspace(-10, 10, 2049)
    middles = (edges[:-1] + edges[1:]) / 2
    counts = np.round(1e6 * np.exp(-(middles**2) / 2)).astype(np.int64)
    counts[0] += 1  # one outlier on each side
    counts[-1] += 1
    found = ranges.describe("x", counts, edges, 99.99)
    assert (found["minmax_low"], found["minmax_high"]) == (-10, 10)
    assert found["percentile_high"] == pytest.approx(3.89, abs=0.03)  # two-sided, of a normal distribution
    for method in ("mse", "entropy"):
        assert 2.5 < found[f"{method}_high"] < 6 and found[f"{method}_low"] == -found[f"{method}_high"]


def test_clipping_by_mse_loses_less_than_the_whole_range():
    edges = np.linspace(0, 100, 2049)
    middles = (edges[:-1] + edges[1:]) / 2
    counts = np.round(1e6 * np.exp(-middles)).astype(np.int64)
    counts[-1] = 1
    found = ranges.describe("x", counts, edges, 99.99)
    loss = [ranges._squared_error(counts, middles, 0, float(found[f"{m}_high"])) for m in ("mse", "minmax")]
    assert found["mse_low"] == 0 and loss[0] < loss[1]


PEAK = """
import sys
from pathlib import Path
from pipelines import calibrate, ranges
from pipelines.calibration import Calibration
from pipelines.data import Dataset
from pipelines.files import read_json, write_json
count, folder = int(sys.argv[1]), Path(sys.argv[2])
manifest = calibrate.manifest(Dataset(Path("build/data")), count, 0, read_json(Path("build/onnx/preprocess.json")))
write_json(folder / "manifest.json", manifest)
ranges.collect(Path("build/onnx/pruned.onnx"), Calibration(Path("build/data"), folder), 2048)
print(next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(project, tmp_path):  # noqa: F811
    peaks = [
        int(line.run(project, "python", "-c", PEAK, str(count), str(tmp_path / str(count))).stdout.splitlines()[-1])
        for count in (32, 1024)
    ]
    # All activations of 1,024 images are some 90 MB here; the peaks differ by what is left of the noise.
    assert peaks[1] - peaks[0] < 15_000, peaks
