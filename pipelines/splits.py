"""Puts images into splits: those that the source gives, and the rest by class and by duplicate group."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.files import sha256_bytes
from pipelines.formats import SPLITS
from pipelines.params import Section

TRAIN, VAL, TEST = range(3)


class Splits(Section):
    """Shares of the images for splits that the source does not bring; what is left is for training."""

    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training(self) -> "Splits":
        if self.val + self.test >= 1:
            raise ValueError("val and test together leave nothing for training; make their sum less than 1")
        return self


def assign(
    hashes: NDArray[Any], given: NDArray[np.int8], labels_of: Callable[[int], Sequence[str]], shares: Splits, seed: int
) -> NDArray[np.int8]:
    """Return the split of each row, a number into SPLITS.

    `hashes` are those of the pixels, in ASCII; `given` are splits of the source (-1: none); `labels_of` gives the
    class names of a row.
    Given splits are kept, with one exception: a split that the source lacks is cut out of its training images.
    Rows of equal pixels go to one split; classes are stratified. The order within a class is that of the SHA-256
    of the seed and the pixels, so that it does not depend on names, and an image added later moves few others.
    """
    found = given.copy()
    missing = [s for s in (VAL, TEST) if (given >= 0).any() and not (given == s).any()]
    strata: dict[tuple[bool, str], list[tuple[str, int]]] = {}
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.r_[np.ones(min(1, len(order)), bool), hashes[order][1:] != hashes[order][:-1]])
    ends = np.r_[starts[1:], len(order)][: len(starts)]
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        rows = order[start:end]
        kept = given[rows][given[rows] >= 0]
        if len(kept) and (kept[0] != TRAIN or (kept != TRAIN).any() or not missing):
            found[rows] = np.where(given[rows] >= 0, given[rows], kept[0])
            continue
        names = Counter(name for row in rows.tolist() for name in labels_of(row))
        name = min(names, key=lambda n: (-names[n], n)) if names else ""
        key = sha256_bytes(f"{seed}:{hashes[rows[0]].decode()}".encode())
        strata.setdefault((bool(len(kept)), name), []).append((key, number))
    for (cut, _), groups in strata.items():
        val = shares.val if not cut or VAL in missing else 0.0
        test = shares.test if not cut or TEST in missing else 0.0
        for place, (_, number) in enumerate(sorted(groups)):
            share = (place + 0.5) / len(groups)
            split = TEST if share < test else VAL if share < test + val else TRAIN
            found[order[starts[number] : ends[number]]] = split
    return found


def numbers(column: Any) -> NDArray[np.int8]:
    """Return a column of split names (or nulls) as numbers into SPLITS (-1: none)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.fill_null(pc.index_in(column, value_set=pa.array(SPLITS)), -1)
    return np.asarray(found.to_numpy(), np.int8)
