"""The images on which a detector differs most from FP32: chosen by its objects, drawn, and said."""

import base64

import numpy as np
import pytest
import yaml

from pipelines import prepare
from pipelines.changes import Judged
from pipelines.data import Dataset, Input
from pipelines.files import write_json

SOURCE = {
    "format": "digit_scenes", "path": "params.yaml", "seed": 0, "images": 40, "size": 64, "digits": 3,
    "smallest": 16, "largest": 32,
}  # fmt: skip
DATA = {"channels": 3, "bits": 8, "splits": {"val": 0.1, "test": 0.2}, "max_rejected": 0.0}
CELLS = 24  # of an edge of 96 pixels


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    root = tmp_path_factory.mktemp("changes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (root / "params.yaml").write_text(
            yaml.safe_dump({"task": "detection", "seed": 0, "data": {"source": SOURCE, **DATA}})
        )
        prepare.main(root / "data")
    dataset = Dataset(root / "data")
    preprocess = dataset.preprocess(Input(height=96, width=96, resize="letterbox"))
    write_json(root / "onnx" / "preprocess.json", preprocess.to_dict())
    write_json(root / "onnx" / "model.json", {"task": "detection", "classes": dataset.classes, "channels": 3})
    return Judged(root / "data", root / "onnx", "detection")


def maps(judged, score=0.9):
    """Return the outputs of a detector that sees each object where it is, its scores falling from `score`."""
    count = len(judged.rows)
    logits = np.full((count, len(judged.dataset.classes), CELLS, CELLS), -9.0, np.float32)
    sides = np.zeros((count, 4, CELLS, CELLS), np.float32)
    for n, (boxes, shape) in enumerate(zip(judged.truth.boxes, judged.truth.shapes, strict=True)):
        edges = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]]
        for k, (left, top, right, bottom) in enumerate(judged.truth.preprocess.place(edges, *shape) / 4):
            x, y = int((left + right) / 2), int((top + bottom) / 2)
            share = score - 0.1 * k
            logits[n, int(boxes[k, 4]), y, x] = np.log(share / (1 - share))
            sides[n, :, y, x] = np.log([x + 0.5 - left, y + 0.5 - top, right - x - 0.5, bottom - y - 0.5])
    return [logits, sides]


def test_the_image_whose_objects_were_lost_comes_first_then_that_of_a_fallen_score(judged):
    before, after = maps(judged), maps(judged)
    counts = [len(boxes) for boxes in judged.truth.boxes]
    lost = int(np.argmax(counts))
    faded = next(n for n, count in enumerate(counts) if count and n != lost)
    after[0][lost] = -9
    after[0][faded][after[0][faded] > 0] -= 0.3
    first, second = judged.most_changed(before, after, 6, "INT8")
    assert first.path == judged.dataset.column("path")[judged.rows[lost]]
    assert first.before.text == f"{counts[lost]} of {counts[lost]} found, 0 false"
    assert first.after.text == f"0 of {counts[lost]} found, 0 false"
    assert second.path == judged.dataset.column("path")[judged.rows[faded]]
    assert sum(int(part.split(" × ")[0]) for part in first.truth.split(", ")) == counts[lost]
    assert first.picture.startswith(b"\xff\xd8") and base64.b64decode(first.image.partition(",")[2]) == first.picture


def test_a_detector_whose_scores_are_all_low_is_drawn_as_one_whose_are_high(judged):
    low = maps(judged, 0.4)
    after = [low[0].copy(), low[1]]
    after[0][0] = -9
    (shown,) = judged.most_changed(low, after, 6, "INT8")
    count = len(judged.truth.boxes[0])
    assert shown.before.text == f"{count} of {count} found, 0 false" and shown.sure < 0.4


def test_equal_detectors_show_nothing_and_noise_on_what_is_no_object_counts_for_nothing(judged):
    before = maps(judged)
    noise = np.random.default_rng(0).normal(0, 1, before[0].shape).astype(np.float32)
    after = [np.where(before[0] < 0, before[0] + noise, before[0]), before[1]]
    assert judged.most_changed(before, before, 6, "INT8") == [] == judged.most_changed(before, after, 6, "INT8")


def test_an_image_that_is_gone_costs_its_picture_only(judged, monkeypatch):
    from pipelines.images import ImageError

    def gone(_row):
        raise ImageError("gone")

    monkeypatch.setattr(judged.dataset, "image", gone)
    after = maps(judged)
    after[0][0] = -9
    (shown,) = judged.most_changed(maps(judged), after, 6, "INT8")
    assert shown.picture is None and shown.image == "" and shown.after.text.startswith("0 of ")
