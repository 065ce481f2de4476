"""Gates: a verdict of three values, with reasons that people can act on."""

import pytest

from pipelines.judge import judge
from pipelines.targets import Bound

METRICS = {
    "images": 400,
    "speedup": 1.8,
    "drop_fp32": 0.25,
    "drop_fp32_low": -0.25,
    "drop_fp32_high": 0.75,
    "accuracy": 0.95,
    "accuracy_low": 0.93,
    "accuracy_high": 0.97,
    "energy_mj": None,
}


def one(metric, **bound):
    verdict = judge(METRICS, {metric: Bound(**bound)})
    (gate,) = verdict["gates"]
    assert gate["result"] == verdict["verdict"]
    return verdict["verdict"], gate["reason"]


@pytest.mark.parametrize(
    ("metric", "bound", "verdict"),
    [
        ("speedup", {"min": 1.8}, "passed"),
        ("speedup", {"min": 1.81}, "failed"),
        ("speedup", {"max": 1.7}, "failed"),
        ("drop_fp32", {"max": 0.75}, "passed"),
        ("drop_fp32", {"max": 0.5}, "inconclusive"),
        ("drop_fp32", {"max": -0.3}, "failed"),
        ("accuracy", {"min": 0.93}, "passed"),
        ("accuracy", {"min": 0.94}, "inconclusive"),
        ("accuracy", {"min": 0.98}, "failed"),
        ("energy_mj", {"max": 5.0}, "inconclusive"),
    ],
)
def test_passes_with_the_whole_interval_fails_with_none_of_it(metric, bound, verdict):
    assert one(metric, **bound)[0] == verdict


def test_reasons_name_value_interval_bound_and_the_images_that_would_settle_it():
    assert one("drop_fp32", max=0.5)[1] == (
        "drop_fp32 is 0.25 (-0.25 to 0.75); at most 0.5 is wanted; "
        "the test split has 400 images, about 1,600 are needed"
    )
    assert one("speedup", min=2.0)[1] == "speedup is 1.8; at least 2 is wanted"
    assert one("energy_mj", max=5)[1] == "energy_mj could not be measured on this machine"


def test_the_worst_gate_decides_and_no_gate_passes():
    bounds = {"speedup": Bound(min=1.0), "drop_fp32": Bound(max=0.5), "accuracy": Bound(min=0.98)}
    assert judge(METRICS, bounds)["verdict"] == "failed"
    assert judge(METRICS, {k: bounds[k] for k in ("speedup", "drop_fp32")})["verdict"] == "inconclusive"
    assert judge(METRICS, {}) == {"verdict": "passed", "gates": []}


def test_a_gate_may_bound_both_sides():
    assert [g["bound"] for g in judge(METRICS, {"speedup": Bound(min=1.0, max=1.5)})["gates"]] == ["min", "max"]
