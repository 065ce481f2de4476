"""Bootstrap intervals: they cover what they should, and know what they cannot know."""

import numpy as np
import pytest

from pipelines import statistics


def scorer(right):
    right = np.asarray(right, float)
    return lambda sample: float(right.mean() if sample is None else right[sample].mean())


def test_the_interval_is_that_of_a_binomial_share():
    right = np.r_[np.ones(900), np.zeros(100)]
    low, high = statistics.interval(scorer(right), 1000, 4000, 0)
    reach = 1.96 * (0.9 * 0.1 / 1000) ** 0.5
    assert low == pytest.approx(0.9 - reach, abs=0.003) and high == pytest.approx(0.9 + reach, abs=0.003)


def test_pairing_removes_what_both_share():
    generator = np.random.default_rng(0)
    one = generator.random(500) < 0.8
    other = one.copy()
    other[:5] = ~other[:5]
    paired = statistics.paired(scorer(one), scorer(other), 500, 1000, 0)
    alone = statistics.interval(scorer(one), 500, 1000, 0)
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 2


def test_no_difference_on_few_images_is_not_certainty():
    right = scorer(np.ones(300))
    assert statistics.paired(right, right, 300, 200, 0) == (-0.01, 0.01)


def test_the_same_seed_gives_the_same_interval():
    right = scorer(np.arange(50) % 3 == 0)
    assert statistics.interval(right, 50, 300, 7) == statistics.interval(right, 50, 300, 7)
    assert statistics.interval(right, 50, 300, 7) != statistics.interval(right, 50, 300, 8)


def test_a_known_effect_is_covered_as_often_as_promised():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        one, other = generator.random(300) < 0.9, generator.random(300) < 0.85
        low, high = statistics.paired(scorer(one), scorer(other), 300, 300, trial)
        covered += low <= 0.05 <= high
    assert 180 <= covered <= 200
