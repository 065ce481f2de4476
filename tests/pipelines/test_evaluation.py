"""What the mean hides: slices, shares kept, and the gates on them."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipelines import evaluation
from pipelines.judge import always, judge
from pipelines.params import parse
from pipelines.stage import StageError
from pipelines.targets import Bound, Target
from pipelines.tasks import classification

CLASSES, EACH = 20, 60
MEASURE = evaluation.Measure(threads=1, warmup=1, runs=20, batch=1, resamples=200, elsewhere=1)


@pytest.fixture
def split():
    labels = np.repeat(np.arange(CLASSES), EACH)
    brightness = np.random.default_rng(0).random(len(labels))
    dataset = SimpleNamespace(classes=[f"c{n}" for n in range(CLASSES)], column={"brightness": brightness}.get)
    return evaluation.TestSet(dataset, np.arange(len(labels)), None, classification, labels, MEASURE, 0)


def answers(labels):
    return [np.eye(CLASSES)[labels]]


def test_a_dead_class_fails_the_slice_gate_and_passes_that_of_the_mean(split):
    right, dead = answers(split.truth), answers(np.where(split.truth == 7, 8, split.truth))
    metrics = {**split.score(dead), **split.drop("fp32", right, dead), **split.worst_slice(right, dead)}
    assert metrics["drop_fp32"] == pytest.approx(100 / CLASSES) and metrics["slices"]["class c7"] == 0
    verdict = judge(metrics, {"drop_fp32": Bound(max=10), "drop_worst_slice": Bound(max=10)})
    assert [g["result"] for g in verdict["gates"]] == ["passed", "failed"] and verdict["verdict"] == "failed"
    assert "drop_worst_slice is 100 in 'class c7'" in verdict["gates"][1]["reason"]


def test_a_slice_of_few_images_settles_little(split):
    right = answers(split.truth)
    metrics = {**split.score(right), **split.worst_slice(right, right)}
    assert metrics["drop_worst_slice"] == 0 and metrics["drop_worst_slice_high"] == pytest.approx(100 * 3 / EACH)
    verdict = judge(metrics, {"drop_worst_slice": Bound(max=4)})
    assert verdict["verdict"] == "inconclusive"
    assert f"the slice 'class c0' has {EACH} images, about 94 are needed" in verdict["gates"][0]["reason"]


def test_a_dark_corner_is_a_slice(split):
    dark = split.dataset.column("brightness") < np.quantile(split.dataset.column("brightness"), 1 / 3)
    found = answers(np.where(dark, (split.truth + 1) % CLASSES, split.truth))
    metrics = split.worst_slice(answers(split.truth), found)
    assert metrics["worst_slice"] == "brightness low" and metrics["drop_worst_slice"] == 100
    assert sum(name.startswith("brightness") for name in split.slices) == 3


def test_tiers_are_shares_of_the_fp32_metric(split):
    right = answers(split.truth)
    lost = answers(np.where(np.arange(len(split.truth)) % 75 == 0, (split.truth + 1) % CLASSES, split.truth))
    metrics = {**split.score(lost), **split.drop("fp32", right, lost)}
    assert metrics["kept_fp32"] == pytest.approx(1 - 1 / 75)
    assert metrics["kept_fp32_low"] < 1 - 1 / 75 < metrics["kept_fp32_high"]
    results = {}
    for tier in ("95%", "99%", "99.9%"):
        results[tier] = judge(metrics, target({"kept_fp32": tier}).gates)["verdict"]
    assert results == {"95%": "passed", "99%": "inconclusive", "99.9%": "failed"}


@pytest.mark.parametrize("gates", [{"kept_fp32": "98%"}, {"drop_fp32": "99%"}])
def test_what_is_no_tier_is_told(gates):
    with pytest.raises(StageError, match=r"a tier \(95%, 99%, 99.9%\) is for kept_fp32"):
        target(gates)


def target(gates):
    entry = {"runtime": "openvino", "precision": "int8", "device": "cpu", "options": {}, "search": "none", "aim": {}}
    return parse({**entry, "gates": gates}, Target, "targets.t")


def test_what_is_called_int8_must_be_int8_and_calibrated_on_other_images():
    metrics = {"precision": "int8", "int8_share": 0.3, "calibration_overlap": 1, "agreement": 0.2, "images": 10}
    verdict = judge(metrics, always(metrics))
    assert [g["reason"] for g in verdict["gates"]] == [
        "int8_share is 0.3; at least 0.5 is wanted",
        "calibration_overlap is 1; at most 0 is wanted",
        "agreement is 0.2; at least 0.5 is wanted; INT8 has lost what FP32 knows, and a search (`search: fast`) finds "
        "the operators to keep in float",
    ]
    assert always({"precision": "fp16"}) == {}
    assert {"int8_share", "calibration_overlap", "drop_worst_slice", "kept_fp32"} <= set(evaluation.METRICS)
