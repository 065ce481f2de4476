"""What the demo promises, held against the build in this folder: `python -m pytest tests/demo_figures.py` after it."""

from pathlib import Path

import pytest

from pipelines.files import read_json, size_of

BUILD = Path("build")
BASELINE = read_json(BUILD / "baseline/metrics.json")
INT8 = ["openvino-int8", "onnxruntime-int8"]


def metrics(target):
    return read_json(BUILD / f"metrics/{target}.json")


def test_the_teacher_is_good():
    assert BASELINE["teacher"]["accuracy"] >= 0.985


def test_pruning_takes_two_fifths_of_the_work_and_half_a_point_at_most():
    assert read_json(BUILD / "pruned/pruning.json")["macs_removed"] >= 0.4
    assert BASELINE["student"]["accuracy"] - BASELINE["pruned"]["accuracy"] <= 0.005


@pytest.mark.parametrize("target", INT8)
def test_int8_is_right_and_small(target):
    assert metrics(target)["drop_fp32"] <= 0.5
    assert size_of(BUILD / "onnx/teacher.onnx") >= 10 * size_of(BUILD / "bundles" / target)
