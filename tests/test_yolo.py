"""YOLO26 through the whole line, end to end on a shrunk copy of its example, and what its bundle says on its own."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.data import Dataset
from pipelines.files import read_json
from pipelines.preprocess import Preprocess
from pipelines.tasks import detection
from pipelines.tasks.detection import decode
from tests import line
from tests.pipelines.test_models import needs

pytestmark = pytest.mark.slow
SHORT = {"epochs": 1, "batch": 8}
SHRUNK = {
    "threads": 1,
    "data": {"source": {"images": 40, "size": 64, "digits": 3, "largest": 32}},
    "input": {"height": 64, "width": 64},
    "contract": {"per_class": {"level": "warn"}, "duplicates": "warn", "edge": {"min": 16}},
    "teacher": {"model": "yolo26n.yaml"},
    "train": SHORT,
    "distill": {"schedule": SHORT},
    "prune": {"schedule": SHORT},
    "calibrate": {"images": 8},
    "measure": {"warmup": 2, "runs": 20, "resamples": 100, "elsewhere": 16},
    "export": {"golden": 2},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    needs("torchvision", "ultralytics")
    root = line.copy(tmp_path_factory.mktemp("yolo"), SHRUNK, example="yolo")
    file = root / "params.yaml"
    declared = yaml.safe_load(file.read_text())
    for target in declared["targets"].values():
        assert target.pop("search") == "fast" and target.pop("aim")
        target |= {"search": "none", "aim": {}}  # of hardly trained weights there is nothing to find
    file.write_text(yaml.safe_dump(declared))
    line.build_here(root)
    return root


@pytest.mark.parametrize("target", ["onnxruntime-int8", "openvino-int8"])
def test_the_bundle_alone_gives_the_boxes_that_were_measured(built, target, tmp_path):
    dataset = Dataset(built / "build/data")
    preprocess = Preprocess.from_dict(read_json(built / "build/onnx/preprocess.json"))
    postprocess = {**detection.POSTPROCESS, **read_json(built / "build/onnx/model.json")["postprocess"]}
    rows = dataset.rows("test")[:4]
    with np.load(built / f"build/predictions/{target}.npz") as file:
        outputs = [file[str(n)][: len(rows)] for n in range(6)]
    wanted = decode.boxes(outputs, preprocess, [(64, 64)] * len(rows), postprocess)
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


def test_the_license_of_what_ultralytics_made_stands_in_the_bundle(built):
    assert "AGPL-3.0" in (built / "build/bundles/openvino-int8/MODEL_CARD.md").read_text()
