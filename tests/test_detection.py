"""The line for detection, end to end on a shrunk copy of its example, and what its bundle says on its own."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.data import Dataset, Input
from pipelines.tasks import detection
from pipelines.tasks.detection import decode
from tests import line

pytestmark = pytest.mark.slow
TARGETS = ["onnxruntime-int8", "openvino-fp16", "openvino-int8"]
SHORT = {"epochs": 12, "batch": 8}
SHRUNK = {
    "threads": 1,
    "data": {"source": {"images": 100, "size": 64, "digits": 3, "largest": 32}},
    "input": {"height": 96, "width": 96},
    "contract": {"per_class": {"level": "warn"}, "duplicates": "warn", "edge": {"min": 16}},
    "teacher": {"stem": 8, "widths": [16, 32], "depths": [1, 1], "neck": 24, "stride": 4},
    "student": {"stem": 8, "widths": [16, 32], "depths": [1, 1], "neck": 16, "stride": 4},
    "train": {"epochs": 30, "batch": 8},
    "distill": {"schedule": {"epochs": 55, "batch": 8}},
    "prune": {"ratio": 0.1, "schedule": SHORT},
    "calibrate": {"images": 16},
    "measure": {"warmup": 2, "runs": 20, "resamples": 100, "elsewhere": 16},
    "export": {"golden": 4},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = line.copy(tmp_path_factory.mktemp("detection"), SHRUNK, example="detection")
    line.build_here(root)
    return root


def read(path):
    return json.loads(path.read_text())


def test_every_target_has_its_metrics_a_bundle_and_a_place_in_the_report(built):
    for target in TARGETS:
        metrics = read(built / f"build/metrics/{target}.json")
        assert 0.02 < metrics["mAP50-95"] <= metrics["mAP50"] <= 1
        assert metrics["mAP50-95_low"] <= metrics["mAP50-95"] <= metrics["mAP50-95_high"]
        assert metrics["drop_fp32"] < 10 and metrics["agreement"] > 0.3
        assert {"class 0", "size small", "brightness low"} <= set(metrics["slices"])
        golden = read(built / f"build/bundles/{target}/evidence.json")["golden"]
        assert golden["images"] == 4 and golden["correct"] <= golden["answers"]
        assert target in (built / "build/report/index.html").read_text()
    assert {read(built / f"build/metrics/{t}.json")["precision"] for t in TARGETS} == {"int8", "fp16"}


@pytest.mark.parametrize("target", ["onnxruntime-int8", "openvino-int8"])
def test_the_bundle_alone_gives_the_boxes_that_were_measured(built, target, tmp_path):
    """Boxes are in pixels of the image as it came: here 64 pixels, where the model takes 96."""
    dataset = Dataset(built / "build/data")
    preprocess = dataset.preprocess(Input(height=96, width=96, resize="letterbox"))
    rows = dataset.rows("test")[:6]
    with np.load(built / f"build/predictions/{target}.npz") as file:
        outputs = [file[k][:6] for k in ("0", "1")]
    wanted = decode.boxes(outputs, preprocess, [(64, 64)] * 6, detection.POSTPROCESS)
    files = []
    for row in rows:
        files.append(tmp_path / f"{row}.png")
        Image.open(io.BytesIO(dataset.encoded(int(row)))).save(files[-1])
    program = built / f"build/bundles/{target}/predict.py"
    done = subprocess.run([sys.executable, "-I", program, *files], capture_output=True, text=True, check=True)
    said = [json.loads(text)["objects"] for text in done.stdout.splitlines()]
    assert sum(map(len, said)) > 10
    for objects, boxes in zip(said, wanted, strict=True):
        found = [[o[k] for k in ("x", "y", "width", "height", "class", "score")] for o in objects]
        np.testing.assert_allclose(np.reshape(found, (-1, 6)), boxes, atol=0.02)
