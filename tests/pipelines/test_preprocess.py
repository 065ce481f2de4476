"""Resizing gives what Pillow gives, or what OpenCV gives where nothing is smoothed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.preprocess import Preprocess, resize

SIDES = st.integers(1, 70)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_smoothed_it_is_that_of_pillow(height, width, high, wide):
    image = noise(height, width)
    wanted = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    assert np.abs(resize(image, high, wide).astype(int) - wanted).max() <= 1


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_not_smoothed_it_is_that_of_opencv(height, width, high, wide):
    cv2 = pytest.importorskip("cv2", reason="comes with the extra yolo")
    image = noise(height, width)
    wanted = cv2.resize(image, (wide, high), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize(image, high, wide, antialias=False).astype(int) - wanted).max() <= 1


def test_what_an_older_bundle_says_is_smoothed():
    said = Preprocess(3, 8, 8, "stretch", 255.0, (0.0,) * 3, (1.0,) * 3).to_dict()
    assert said.pop("antialias") is True
    image = noise(40, 40)
    other = Preprocess.from_dict({**said, "antialias": False})
    assert np.array_equal(Preprocess.from_dict(said).pixels(image), resize(image, 8, 8))
    assert not np.array_equal(other.pixels(image), resize(image, 8, 8))
