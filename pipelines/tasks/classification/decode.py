"""From the outputs of a classifier to what it says. Needs numpy alone, and travels in every bundle of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.preprocess import Preprocess


def decode(
    outputs: Sequence[NDArray[Any]],
    postprocess: dict[str, Any],
    _preprocess: Preprocess | None = None,
    _shapes: Sequence[tuple[int, ...]] = (),
) -> list[dict[str, Any]]:
    """Return of each image the most probable class: `label`, `class` and `score`, the softmax of its logit."""
    logits = np.asarray(outputs[0], np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    best = shares.argmax(1)
    return [
        {"label": postprocess["classes"][n], "class": int(n), "score": round(float(shares[row, n]), 6)}
        for row, n in enumerate(best)
    ]


def hits(prediction: dict[str, Any], label: NDArray[Any]) -> int:
    """Return 1 where a prediction names the class id `label`, else 0."""
    return int(prediction["class"] == label)
