"""How far a new version of the data lies from a reference, with one named statistic per column."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.data import Dataset
from pipelines.files import sha256_file
from pipelines.params import Section
from pipelines.stage import StageError

FLOOR = 1e-4  # the least share of a class, so that the PSI of a class that one side lacks is finite


class Bound(Section):
    """The largest value of a statistic."""

    level: Literal["error", "warn"] = Field(description="`error` stops the line, `warn` is shown.")
    max: float = Field(gt=0)


class Drift(Section):
    """The data version to compare with, and how far the new one may lie from it."""

    reference: str = Field(min_length=1, description="An index.parquet, such as that of the production model.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Its content, so that another one is noticed.")
    ks: Bound = Field(description="Kolmogorov-Smirnov statistic of each column of numbers (0: same, 1: apart).")
    psi: Bound = Field(description="Population stability index of the classes (customary: 0.1 small, 0.25 large).")


def measure(dataset: Dataset, drift: Drift) -> list[dict[str, Any]]:
    """Return for each column: its name, the `statistic` (ks or psi), and its value.

    Raises StageError when the reference is missing, is another file than the declared one, or is no index.
    """
    file = Path(drift.reference)
    key = "params.yaml: contract.drift"
    if not file.is_file():
        raise StageError(f"{key}.reference: no file '{file}'; fetch it, for example with dvc get (see docs/data.md)")
    if (found := sha256_file(file)) != drift.sha256:
        raise StageError(f"{key}.sha256: '{file}' has {found}; write that, if it is the reference that you mean")
    reference = _table(file, f"{key}.reference")
    if "classes" not in reference[1] or set(reference[0].schema.names) != set(dataset.index.schema.names):
        raise StageError(f"{key}.reference: '{file}' is no index of this version for this task; prepare it anew")
    old = numbers(reference[0])
    new = numbers(dataset.index)
    rows = [
        {"column": name, "statistic": "ks", "value": ks(old[name], new[name])} for name in sorted(set(old) & set(new))
    ]
    shares = psi(
        class_names(reference[0], json.loads(reference[1]["classes"])), class_names(dataset.index, dataset.classes)
    )
    return [*rows, {"column": "class", "statistic": "psi", "value": shares}]


def ks(old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic: the largest distance of the two distributions, 0..1."""
    from scipy.stats import ks_2samp

    if not len(old) or not len(new):
        return 0.0 if len(old) == len(new) else 1.0
    return float(ks_2samp(old, new, method="asymp").statistic)


def psi(old: dict[str, int], new: dict[str, int]) -> float:
    """Return the population stability index of two counts by name, with shares of at least FLOOR.

    PSI = sum of (p - q) ln(p / q), the symmetric Kullback-Leibler divergence (Siddiqi, Credit Risk Scorecards, 2006).
    """
    from scipy.special import rel_entr

    names = sorted(set(old) | set(new))
    shares = [
        np.array([counts.get(n, 0) for n in names], np.float64) / max(sum(counts.values()), 1) for counts in (old, new)
    ]
    p, q = (np.maximum(share, FLOOR) for share in shares)
    return float((rel_entr(p, q) + rel_entr(q, p)).sum())


def numbers(table: Any) -> dict[str, NDArray[np.float64]]:
    """Return the columns of an index that are compared as numbers."""
    import pyarrow.compute as pc

    found = {n: table.column(n).to_numpy().astype(np.float64) for n in ("width", "height", "brightness", "sharpness")}
    for name in ("channel_mean", "channel_std"):
        column = table.column(name)
        least = pc.min(pc.list_value_length(column)).as_py()
        for channel in range(least or 0):
            found[f"{name} {channel}"] = pc.list_element(column, channel).to_numpy()
    if "boxes" in table.schema.names:
        boxes = table.column("boxes")
        sides = [pc.struct_field(pc.list_flatten(boxes), side).to_numpy() for side in ("width", "height")]
        found["box area"] = sides[0] * sides[1]
        found["boxes per image"] = pc.list_value_length(boxes).to_numpy().astype(np.float64)
    return found


def class_names(table: Any, classes: list[str]) -> dict[str, int]:
    """Return how often each class stands in an index."""
    import pyarrow.compute as pc

    if "label" in table.schema.names:
        ids = table.column("label").to_numpy()
    else:
        ids = pc.struct_field(pc.list_flatten(table.column("boxes")), "label").to_numpy()
    counts = np.bincount(ids[ids >= 0], minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}


def _table(file: Path, key: str) -> tuple[Any, dict[str, str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise StageError(f"{key}: '{file}' is not Parquet: {error}") from None
    return table, {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
