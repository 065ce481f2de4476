"""Bootstrap confidence intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""

import math
import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Scorer = Callable[[NDArray[np.int64] | None], float]

CONFIDENCE = 0.95


def interval(score: Scorer, images: int, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric over resampled images."""
    return _percentiles([score(sample) for sample in _samples(images, resamples, seed)])


def paired(
    score: Scorer,
    other: Scorer,
    images: int,
    resamples: int,
    seed: int,
    compare: Callable[[float, float], float] = operator.sub,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of `score - other`, both over the same resampled images each time.

    `compare` may be another comparison of the two.

    Where the two never differ, resampling knows no uncertainty; then the interval reaches 3 / images to both sides
    (Hanley and Lippman-Hand, If Nothing Goes Wrong, Is Everything All Right?, JAMA 249, 1983).
    """
    low, high = _percentiles([compare(score(sample), other(sample)) for sample in _samples(images, resamples, seed)])
    if low == high:
        return low - 3 / images, high + 3 / images
    return low, high


def _samples(images: int, resamples: int, seed: int) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, images, images) for _ in range(resamples)]


def _percentiles(values: list[float]) -> tuple[float, float]:
    """Return the interval of those values that could be told: a resample without any object has no precision."""
    told = [value for value in values if not math.isnan(value)]
    low, high = np.quantile(told, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
