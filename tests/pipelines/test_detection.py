"""Detection: what the loss wants is what decoding gives back, and both are in the pixels that people see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines import evaluation, training
from pipelines.preprocess import Preprocess
from pipelines.tasks import detection
from pipelines.tasks.detection import decode, losses

CLASSES, CELLS = 3, 16
SQUARE = Preprocess(3, 128, 128, "letterbox", 255.0, (0.0,) * 3, (1.0,) * 3)
SURE = {**detection.POSTPROCESS, "least": 0.5}
BOXES = np.array([[10.0, 20, 30, 40, 0], [70, 60, 50, 50, 2], [60, 4, 12, 12, 1]])


def maps(boxes, score=6.0):
    """Outputs that show boxes (left, top, width, height in pixels of the input, class) and nothing else."""
    logits, distances = np.full((1, CLASSES, CELLS, CELLS), -6.0), np.zeros((1, 4, CELLS, CELLS))
    for left, top, width, height, label in boxes:
        x, y = int((left + width / 2) / 8), int((top + height / 2) / 8)
        logits[0, int(label), y, x] = score
        sides = np.array([x + 0.5 - left / 8, y + 0.5 - top / 8, (left + width) / 8, (top + height) / 8])
        sides[2:] -= [x + 0.5, y + 0.5]
        distances[0, :, y, x] = np.log(sides)
    return [logits, distances]


def moved_by(pixels):
    return BOXES + np.array([pixels, 0, 0, 0, 0])


def said(boxes, shape=(128, 128), preprocess=SQUARE):
    truth, shapes = [np.asarray(b, float) for b in boxes], [shape] * len(boxes)
    return detection.Truth(truth, shapes, list("abc"), preprocess, detection.POSTPROCESS)


def wanted(boxes):
    edges = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]] / 128
    return torch.from_numpy(np.c_[edges, boxes[:, 4]]).float()[None]


def test_decoding_gives_back_what_the_maps_show():
    (found,) = decode.boxes(maps(BOXES), SQUARE, [(128, 128)], SURE)
    order = np.lexsort(found.T[:1])
    np.testing.assert_allclose(found[order][:, :5], BOXES[np.lexsort(BOXES.T[:1])], atol=1e-9)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(64, 256), (300, 90)])
def test_boxes_are_in_pixels_of_the_image_as_it_came(resize, shape):
    preprocess = Preprocess(3, 128, 128, resize, 255.0, (0.0,) * 3, (1.0,) * 3)
    original = np.array([[12.0, 8, 36, 24, 1]])
    corners = preprocess.place(np.c_[original[:, :2], original[:, :2] + original[:, 2:4]], *shape)
    inside = np.c_[corners[:, :2], corners[:, 2:] - corners[:, :2], 1]
    (found,) = decode.boxes(maps(inside), preprocess, [shape], SURE)
    np.testing.assert_allclose(found[:, :5], original, atol=1e-9)


def test_neighbours_of_equal_score_are_one_object():
    outputs = maps(BOXES[:1])
    y, x = np.argwhere(outputs[0][0, 0] > 0)[0]
    outputs[0][0, 0, y, x : x + 3] = 6.0  # as rounding to INT8 does
    assert len(decode.cells(outputs, SURE)[0]) == 1


def test_the_loss_is_least_for_the_maps_that_decode_to_the_truth():
    target = wanted(BOXES)

    def of(outputs):
        return float(losses.loss(tuple(torch.from_numpy(o).float() for o in outputs), target))

    moved, dull = maps(moved_by(16), 12.0), maps(BOXES, -6.0)
    assert of(maps(BOXES, 12.0)) < min(of(moved), of(dull)) / 2


def test_the_loss_learns_boxes_from_zero():
    target = wanted(BOXES)
    logits, distances = (torch.zeros(1, n, CELLS, CELLS, requires_grad=True) for n in (CLASSES, 4))
    optimizer = torch.optim.Adam([logits, distances], lr=0.2)
    for _ in range(50):
        optimizer.zero_grad()
        losses.loss((logits, distances), target).backward()
        optimizer.step()
    outputs = [logits.detach().numpy(), distances.detach().numpy()]
    assert detection.scorer(outputs, said([BOXES]))(None) > 0.7
    nothing = losses.loss((logits, distances), torch.full((1, 1, 5), -1.0))
    assert torch.isfinite(nothing)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = tuple(torch.from_numpy(o).float() for o in maps(BOXES))
    moved = tuple(torch.from_numpy(o).float() for o in maps(moved_by(8)))
    for temperature in (1.0, 2.0):
        same, other = (float(losses.distillation(student, teacher, temperature)) for student in (teacher, moved))
        assert abs(same) < 1e-5 and other > 1


def test_boxes_follow_the_augmented_image():
    box = np.array([[50.0, 40, 30, 40, 0]])
    dataset = SimpleNamespace(classes=list("abc"), column=lambda name: np.array([128]), boxes=lambda row: box.copy())
    image = torch.zeros(1, 3, 128, 128)
    image[:, :, 40:80, 50:80] = 1
    options = training.Augment(rotate=0, shift=0.2, scale=0.3, flip=True)
    for seed in range(8):
        matrices = training.draw(image, options, torch.Generator().manual_seed(seed))
        shown = training.warp(image, matrices)[0, 0] > 0.5
        left, top, right, bottom, label = detection.targets(dataset, np.array([0]), SQUARE, matrices)[0, 0].tolist()
        rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(np.array([left, top, right, bottom]) * 128, found, atol=1.5)
        assert label == 0


def test_slices_are_classes_and_sizes_and_a_dead_class_is_seen():
    many = said([BOXES] * 12)
    right = [np.repeat(o, 12, 0) for o in maps(BOXES)]
    dead = [right[0].copy(), right[1]]
    dead[0][:, 2] = -9
    parts = detection.slices(many, list("abc"))
    assert list(parts) == ["class a", "class b", "class c", "size small", "size medium"]
    assert {n: detection.scorer(dead, many, n)(p) for n, p in parts.items()} == pytest.approx(
        {"class a": 1, "class b": 1, "class c": 0, "size small": 1, "size medium": 0.5}
    )
    assert detection.details(dead, many)["mAP50"] == pytest.approx(2 / 3)
    assert detection.agreement(right, right) == 1 and detection.agreement(right, dead) == pytest.approx(4 / 5)

    dataset = SimpleNamespace(classes=list("abc"), column=lambda name: np.linspace(0, 1, 12))
    measure = evaluation.Measure(threads=1, warmup=1, runs=20, batch=1, resamples=100, elsewhere=1)
    test = evaluation.TestSet(dataset, np.arange(12), SQUARE, detection, many, measure, 0)
    assert test.drop("fp32", right, dead)["drop_fp32"] == pytest.approx(100 / 3)
    worst = test.worst_slice(right, dead)
    assert worst["worst_slice"] == "class c" and worst["drop_worst_slice"] == pytest.approx(100)


@pytest.mark.parametrize("score", [6.0, -1.0, -4.0])
def test_a_model_that_lost_its_objects_agrees_with_none_however_low_their_scores_were(score):
    """A little trained detector is sure of nothing, and so is a collapsed one: that is no agreement."""
    elsewhere = BOXES - np.array([0, 0, 20, 20, 0])
    right, lost, empty = (maps(boxes, s) for boxes, s in ((BOXES[:2], score), (elsewhere[:2], score - 2), ([], 0)))
    for outputs in (right, lost, empty):
        outputs[0][outputs[0] == -6.0] = -20.0
    assert detection.agreement(right, right) == 1
    assert detection.agreement(right, lost) == detection.agreement(right, empty) == 0
    # An image on which neither sees anything counts for nothing.
    two, gone = ([np.concatenate([o, e]) for o, e in zip(one, empty, strict=True)] for one in (right, lost))
    assert detection.agreement(two, gone) == 0


def test_agreement_is_of_objects_of_one_class_and_place_weighed_by_their_scores():
    right = maps(BOXES)
    assert detection.agreement(right, maps(moved_by(2))) == 1
    assert detection.agreement(right, maps(np.c_[BOXES[:, :4], (BOXES[:, 4] + 1) % 3])) == 0
    assert detection.agreement(right, maps(BOXES[:2])) == pytest.approx(4 / 5)
    sure = 1 / (1 + np.exp(-6))
    assert detection.agreement(right, maps(BOXES, 0.0)) == pytest.approx(2 * 0.5 / (0.5 + sure))
    more = maps(np.r_[BOXES, [[11.0, 40, 30, 40, 0]]])
    assert detection.agreement(right, more) == detection.agreement(more, right) == pytest.approx(6 / 7)


def test_a_golden_image_counts_its_objects():
    found = [{"x": x, "y": y, "width": w, "height": h, "class": c} for x, y, w, h, c in BOXES]
    truth = np.r_[BOXES, [[0, 0, 9, 9, -1]]]
    assert decode.hits({"objects": found}, truth) == 3
    assert decode.hits({"objects": [{**found[0], "class": 1}, found[1]]}, truth) == 1
    assert decode.hits({"objects": []}, truth) == 0
