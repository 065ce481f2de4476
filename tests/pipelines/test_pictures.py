"""What is drawn of two detectors: what each found, how far they are apart, and the pixels of the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines import pictures

CLASSES = ["cat", "dog"]
TRUTH = np.array([[10.0, 10, 20, 20, 0], [60, 40, 30, 20, 1]])


def thing(x, y, width, height, kind, score):
    return {
        "x": x, "y": y, "width": width, "height": height, "class": kind, "label": CLASSES[kind], "score": score
    }  # fmt: skip


CAT, DOG = thing(11, 10, 20, 20, 0, 0.9), thing(60, 41, 30, 20, 1, 0.8)


def test_right_false_and_missed_are_told_apart():
    twice = thing(10, 11, 20, 20, 0, 0.5)
    wrong_class = thing(60, 40, 30, 20, 0, 0.7)
    found = pictures.compare(TRUTH, [twice, wrong_class, CAT])
    assert (found.right, found.false, found.missed) == ((2,), (0, 1), (1,))
    assert str(found) == "1 of 2 found, 2 false"
    assert str(pictures.compare(TRUTH[:0], [CAT])) == "0 of 0 found, 1 false"
    assert str(pictures.compare(TRUTH, [])) == "0 of 2 found, 0 false"


def test_of_two_boxes_an_object_takes_the_free_one_that_it_covers_best():
    near = np.array([[10.0, 10, 20, 20, 0], [12, 10, 20, 20, 0]])
    found = pictures.compare(near, [thing(11.9, 10, 20, 20, 0, 0.9), thing(12, 10, 20, 20, 0, 0.8)])
    assert found.right == (0, 1) and not found.missed


def test_the_distance_is_zero_for_the_same_and_grows_with_what_is_lost():
    both = [CAT, DOG]
    assert pictures.distance(both, both) == 0 and pictures.distance([], []) == 0
    assert pictures.distance(both, [CAT]) == pytest.approx(0.8)
    assert pictures.distance([CAT], both) == pytest.approx(0.8)
    assert pictures.distance(both, [CAT, {**DOG, "score": 0.6}]) == pytest.approx(0.2)
    moved = {**CAT, "x": 16}
    assert pictures.distance([CAT], [moved]) == pytest.approx(0.9 * (1 - 15 / 25))
    other = {**CAT, "class": 1, "label": "dog"}
    assert pictures.distance([CAT], [other]) == pytest.approx(1.8)


def drawn(pixels, after):
    picture = pictures.beside(pixels, TRUTH, CLASSES, [("FP32", [CAT, DOG]), ("INT8", after)])
    return np.asarray(picture), (picture.width + pictures.GAP) // 2


def has(part, colour):
    return bool((part == np.array(colour, np.uint8)).all(-1).any())


@pytest.mark.parametrize("channels", [1, 3])
def test_each_half_shows_its_own_objects_on_the_image(channels):
    pixels = np.full((80, 120, channels), 77, np.uint8)
    sheet, half = drawn(pixels, [CAT, thing(5, 50, 20, 20, 1, 0.4)])
    before, after = sheet[pictures.HEAD :, : half - pictures.GAP], sheet[pictures.HEAD :, half:]
    assert sheet.shape == (pictures.HEAD + 240, 2 * 360 + pictures.GAP, 3)  # three times as large, pixel by pixel
    assert has(before, pictures.RIGHT) and not has(before, pictures.FALSE) and not has(before, pictures.MISSED)
    assert has(after, pictures.RIGHT) and has(after, pictures.FALSE) and has(after, pictures.MISSED)
    assert has(before, (77, 77, 77))
    assert tuple(before[10 * 3 + 30, 11 * 3]) == pictures.RIGHT  # the left edge of the cat
    assert tuple(after[50 * 3, 5 * 3 + 30]) == pictures.FALSE  # the top edge of the dog that is none


def test_large_images_are_brought_down_and_boxes_with_them():
    pixels = np.zeros((1600, 2400, 3), np.uint8)
    truth = TRUTH * [20, 20, 20, 20, 1]
    one = {**CAT, **{k: CAT[k] * 20 for k in ("x", "y", "width", "height")}}
    sheet = np.asarray(pictures.beside(pixels, truth, CLASSES, [("FP32", [one]), ("INT8", [])]))
    assert sheet.shape == (pictures.HEAD + 240, 2 * 360 + pictures.GAP, 3)
    assert tuple(sheet[pictures.HEAD + 60, 33]) == pictures.RIGHT


def test_boxes_at_the_edge_of_a_tiny_image_are_drawn_and_nothing_breaks():
    truth = np.array([[0.0, 0, 8, 8, 1], [7, 7, 1, 1, 0]])
    edge = thing(-3, -3, 12, 12, 1, 0.55)
    sheet = pictures.beside(np.zeros((8, 8, 1), np.uint8), truth, CLASSES, [("FP32", [edge]), ("INT8", [])])
    assert sheet.height == pictures.HEAD + 360 and sheet.width >= 2 * 360


def test_the_same_picture_has_the_same_bytes_and_opens():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    one, two = (
        pictures.jpeg(pictures.beside(pixels, TRUTH / 2, CLASSES, [("FP32", [CAT]), ("INT8", [])])) for _ in "ab"
    )
    assert one == two
    assert Image.open(io.BytesIO(one)).format == "JPEG"


def test_the_best_score_is_that_of_the_best_f1_and_parts_no_equal_scores():
    false = thing(80, 5, 10, 10, 1, 0.3)
    assert pictures.best_score([TRUTH], [[CAT, DOG, false]]) == 0.8
    assert pictures.best_score([TRUTH, TRUTH[:0]], [[CAT, DOG], [{**false, "score": 0.8}]]) == 0.8
    # With the false one of equal score F1 is 2/3 (1 of 2, 1 false) where the cat alone would have it, too, at 0.9.
    assert pictures.best_score([TRUTH], [[CAT, {**false, "score": 0.9}]]) == 0.9
    assert pictures.best_score([TRUTH], [[false]]) == 1.0 and pictures.best_score([], []) == 1.0


def test_what_is_right_is_not_hidden_under_what_is_false():
    false = [{**CAT, "score": 0.1 + n / 100} for n in range(5)]
    for objects in ([*false, CAT], [CAT, *false]):
        sheet = np.asarray(pictures.beside(np.zeros((80, 120, 3), np.uint8), TRUTH, CLASSES, [("FP32", objects)]))
        assert tuple(sheet[pictures.HEAD + 60, 33]) == pictures.RIGHT
