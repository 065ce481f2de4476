"""The metric of detection is that of COCO, also over resampled images."""

import contextlib
import io

import numpy as np
import pytest

from pipelines.tasks.detection import average_precision as ap

CLASSES = 4


def scenes(seed, images=12):
    """Random truth and detections: moved, doubled, made up and missing boxes, with scores that repeat."""
    generator = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = generator.integers(0, 9)
        edges = generator.choice([10.0, 40.0, 150.0], (count, 2)) * generator.uniform(0.7, 1.3, (count, 2))
        boxes = np.c_[generator.uniform(0, 300, (count, 2)), edges, generator.integers(0, CLASSES - 1, count)]
        near = boxes[generator.random(count) < 0.8].repeat(generator.integers(1, 3), 0)
        near[:, :4] += generator.normal(0, 0.06, (len(near), 4)) * near[:, [2, 3, 2, 3]]
        noise = np.c_[generator.uniform(0, 300, (4, 4)), generator.integers(0, CLASSES, 4)]
        every = np.r_[near, noise]
        truth.append(boxes)
        found.append(np.c_[every, generator.integers(1, 30, len(every)) / 30])
    return truth, found


def reference(truth, found):
    """COCOeval.stats as pycocotools prints them, over images of which each stands once."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        boxes = [(n, b) for n, image in enumerate(truth) for b in image]
        coco.dataset = {
            "info": {},
            "images": [{"id": n} for n in range(len(truth))],
            "categories": [{"id": c} for c in range(CLASSES)],
            "annotations": [
                {"id": i, "image_id": n, "category_id": int(b[4]), "bbox": list(b[:4]), "area": b[2] * b[3],
                 "iscrowd": 0} for i, (n, b) in enumerate(boxes, 1)
            ],
        }  # fmt: skip
        coco.createIndex()
        every = [[n, *b[:4], b[5], b[4]] for n, image in enumerate(found) for b in image]
        evaluated = COCOeval(coco, coco.loadRes(np.array(every)), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools(seed):
    truth, found = scenes(seed)
    stats = reference(truth, found).stats
    every = ap.match(truth, found, CLASSES)
    assert ap.mean(every) == pytest.approx(stats[0], abs=1e-6) and 0.1 < stats[0] < 0.9
    assert ap.mean(every, ious=1) == pytest.approx(stats[1], abs=1e-6)
    for size, wanted in zip(("small", "medium", "large"), stats[3:6], strict=True):
        assert ap.mean(ap.match(truth, found, CLASSES, size)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_each_class_equals_pycocotools(seed):
    truth, found = scenes(seed)
    precision = reference(truth, found).eval["precision"][:, :, :, 0, -1]
    for number, one in enumerate(ap.match(truth, found, CLASSES)):
        wanted = precision[:, :, number].mean(1)
        mine = ap.average_precision(one)
        if number == CLASSES - 1:  # detected, and in no image
            assert np.isnan(mine).all() and (wanted == -1).all()
        else:
            np.testing.assert_allclose(mine, wanted, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_is_the_dataset_of_the_drawn_images(seed):
    truth, found = scenes(seed)
    for boxes in found:  # of equal scores the copies of an image stand in turn, where a weight puts them side by side
        boxes[:, 5] -= np.random.default_rng(seed).random(len(boxes)) / 100
    matches, generator = ap.match(truth, found, CLASSES), np.random.default_rng(seed)
    for _ in range(5):
        sample = np.sort(generator.integers(0, len(truth), len(truth)))
        wanted = reference([truth[n] for n in sample], [found[n] for n in sample]).stats[0]
        assert ap.mean(matches, sample) == pytest.approx(wanted, abs=1e-6)


def test_without_detections_it_is_nothing_and_without_objects_nothing_can_be_said():
    truth, found = scenes(0)
    nothing = [np.zeros((0, 6))] * len(truth)
    assert ap.mean(ap.match(truth, nothing, CLASSES)) == 0
    assert np.isnan(ap.mean(ap.match([t[:0] for t in truth], found, CLASSES)))
