"""Holds the index against the data contract with Great Expectations, and writes Data Docs."""

import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.data import Dataset
from pipelines.data_docs import page
from pipelines.drift import Drift, measure
from pipelines.files import read_json, write_file, write_folder, write_json
from pipelines.formats import SPLITS
from pipelines.params import Section, section
from pipelines.stage import StageError, run

KEPT = Path(".quantmill/contract")  # where the docs of a violated contract stay: DVC keeps no output of a failed stage
EXAMPLES = 3
Level = Literal["error", "warn"]


class Range(Section):
    """Bounds of a value, both inclusive."""

    level: Level = Field(description="`error` stops the line, `warn` is shown.")
    min: float
    max: float


class Least(Section):
    """A lower bound."""

    level: Level
    min: int = Field(ge=0)


class Most(Section):
    """An upper bound."""

    level: Level
    max: float = Field(ge=0)


class Exactly(Section):
    """One allowed value."""

    level: Level
    value: int


class Boxes(Section):
    """What the boxes of a detection dataset must keep."""

    outside: Most = Field(description="Pixels by which a box may stick out of its image.")
    area: Least = Field(description="Area of a box in pixels.")


class Contract(Section):
    """What the data must keep."""

    edge: Range = Field(description="Width and height of each image in pixels.")
    channels: Exactly = Field(description="Channels of each image.")
    bits: Exactly = Field(description="Bits per channel of each image.")
    brightness: Range = Field(description="Mean of an image as a share of full scale.")
    sharpness: Range = Field(description="Variance of the Laplacian of an image.")
    unreadable: Most = Field(description="Share of the source's files that could not be used.")
    known_class: Level = Field(description="Level of: every label is a class of the dataset.")
    per_class: Least = Field(description="Images of each class in each split.")
    balance: Most = Field(description="Images of the largest class / of the smallest, in training.")
    duplicates: Level = Field(description="Level of: no two splits hold an image of equal pixels.")
    boxes: Boxes | None = Field(description="For detection; null otherwise.")
    drift: Drift | None = Field(description="Against an earlier version of the data; null: not compared.")


@dataclass(frozen=True)
class Check:
    """One expectation: `values` must lie in low..high; `names` says what each belongs to, one for one.

    `shown` are the examples of a check whose values belong to no single file.
    """

    name: str
    level: str
    what: str
    names: Any
    values: NDArray[np.float64] = field(repr=False)
    low: float | None
    high: float | None
    shown: tuple[str, ...] = ()


def main(data: Path, out: Path) -> None:
    """Write `out`: `results.json` and `docs/index.html`.

    Raises StageError naming each violated expectation of level `error`, its count, and three example files; the
    docs are then kept under `.quantmill/contract`.
    """
    dataset, contract = Dataset(data), section("contract", Contract)
    rejected = read_json(data / "rejected.json")
    drifted = _drift(dataset, contract)
    counts = count(dataset)
    results = judge(checks(dataset, contract, counts, rejected, drifted))
    broken = [r for r in results if not r["success"] and r["level"] == "error"]
    by_name = {s: dict(zip(dataset.classes, counts[n].tolist(), strict=True)) for n, s in enumerate(SPLITS)}
    found = {"counts": by_name, "drift": drifted}
    with write_folder(KEPT if broken else out) as folder:
        write_json(folder / "results.json", {"checks": results, "dataset": dataset.info, "passed": not broken, **found})
        with write_file(folder / "docs" / "index.html") as part:
            part.write_text(page(dataset.info, results, {**found, "rejected": rejected}), encoding="utf-8")
    for result in results:
        if not result["success"]:
            print(f"{result['level']}: {_sentence(result)}")
    if broken:
        sentences = "; ".join(_sentence(result) for result in broken)
        raise StageError(f"the data breaks its contract: {sentences}; see {KEPT}/docs/index.html")
    shutil.rmtree(KEPT, ignore_errors=True)  # of an earlier, violated contract
    print(f"{len(results)} expectations, {sum(r['success'] for r in results)} met")


def checks(
    dataset: Dataset,
    contract: Contract,
    counts: NDArray[np.int64],
    rejected: list[dict[str, str]],
    drifted: list[dict[str, Any]],
) -> list[Check]:
    """Return the contract as checks of columns: over images, boxes, class and split pairs, and the whole.

    `counts` are of `count`, `rejected` are the files left out, `drifted` the statistics against the reference.
    """
    paths = dataset.column("path")

    def of_images(name: str, what: str, bound: Any, low: float, high: float) -> Check:
        return Check(name, bound.level, what, paths, dataset.column(name).astype(np.float64), low, high)

    edge, channels, bits = contract.edge, contract.channels, contract.bits
    size = f"{edge.min:g} to {edge.max:g} pixels"
    found = [
        of_images("width", size, edge, edge.min, edge.max),
        of_images("height", size, edge, edge.min, edge.max),
        of_images("channels", str(channels.value), channels, channels.value, channels.value),
        of_images("bits", str(bits.value), bits, bits.value, bits.value),
    ]
    for name in ("brightness", "sharpness"):
        bound = getattr(contract, name)
        found.append(of_images(name, f"{bound.min:g} to {bound.max:g}", bound, bound.min, bound.max))
    found.append(Check("duplicates", contract.duplicates, "in one split only", paths, _in_splits(dataset), 1, 1))
    if contract.boxes and dataset.info["task"] == "detection":
        found += _of_boxes(dataset, contract.boxes, paths)
    total = len(paths) + len(rejected)
    most, shown = contract.unreadable, tuple(f"{r['path']} ({r['reason']})" for r in rejected[:EXAMPLES])
    what = f"at most {most.max:g} of {total:,} files left out ({len(rejected):,} are)"
    found.append(
        Check("unreadable", most.level, what, ["files"], np.array([len(rejected) / total]), None, most.max, shown)
    )
    found += _of_labels(dataset, contract, counts, paths)
    for statistic in ("ks", "psi") if contract.drift else ():
        bound = getattr(contract.drift, statistic)
        ours = [d for d in drifted if d["statistic"] == statistic]
        names, values = [d["column"] for d in ours], np.array([d["value"] for d in ours])
        what = f"{statistic.upper()} of at most {bound.max:g} against the reference"
        found.append(Check(f"drift_{statistic}", bound.level, what, names, values, None, bound.max))
    return found


def count(dataset: Dataset) -> NDArray[np.int64]:
    """Return the images of each class in each split: splits x classes."""
    rows, labels = _labels(dataset)
    pairs = np.unique(np.stack([rows, labels], 1)[labels >= 0], axis=0)
    counts = np.zeros((len(SPLITS), len(dataset.classes)), np.int64)
    np.add.at(counts, (_splits(dataset)[pairs[:, 0]], pairs[:, 1]), 1)
    return counts


def _drift(dataset: Dataset, contract: Contract) -> list[dict[str, Any]]:
    if contract.drift is None:
        return []
    bounds = {"ks": contract.drift.ks, "psi": contract.drift.psi}
    return [{**d, **bounds[d["statistic"]].model_dump()} for d in measure(dataset, contract.drift)]


def _splits(dataset: Dataset) -> NDArray[np.int64]:
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.asarray(pc.index_in(dataset.index.column("split"), value_set=pa.array(SPLITS)).to_numpy(), np.int64)


def _labels(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and the class ids of all labels, or of all boxes."""
    import pyarrow.compute as pc

    if dataset.info["task"] == "classification":
        return np.arange(len(dataset.labels)), dataset.labels
    boxes = dataset.index.column("boxes")
    labels = pc.struct_field(pc.list_flatten(boxes), "label").to_numpy()
    return pc.list_parent_indices(boxes).to_numpy().astype(np.int64), labels.astype(np.int64)


def _in_splits(dataset: Dataset) -> NDArray[np.float64]:
    """Return for each row the number of splits that hold an image of its pixels."""
    import pyarrow as pa

    column = dataset.index.column("pixel_hash")
    codes = pa.chunked_array(column.dictionary_encode()).unify_dictionaries().combine_chunks().indices.to_numpy()
    held = np.zeros((int(codes.max(initial=-1)) + 1, len(SPLITS)), bool)
    held[codes, _splits(dataset)] = True
    return np.asarray(held.sum(1)[codes], np.float64)


def _of_boxes(dataset: Dataset, bounds: Boxes, paths: NDArray[Any]) -> list[Check]:
    import pyarrow.compute as pc

    boxes = dataset.index.column("boxes")
    flat = pc.list_flatten(boxes)
    rows = pc.list_parent_indices(boxes).to_numpy()
    x, y, width, height = (pc.struct_field(flat, s).to_numpy() for s in ("x", "y", "width", "height"))
    right = x + width - dataset.column("width")[rows]
    bottom = y + height - dataset.column("height")[rows]
    sticks = np.max([-x, -y, right, bottom, np.zeros(len(x))], 0) if len(x) else np.zeros(0)
    most, least, names = bounds.outside, bounds.area, paths[rows]
    return [
        Check(
            "box_outside", most.level, f"at most {most.max:g} pixels out of the image", names, sticks, None, most.max
        ),
        Check("box_area", least.level, f"at least {least.min} pixels", names, width * height, least.min, None),
    ]


def _of_labels(dataset: Dataset, contract: Contract, counts: NDArray[np.int64], paths: NDArray[Any]) -> list[Check]:
    rows, labels = _labels(dataset)
    pairs = [f"class {name} in {split}" for split in SPLITS for name in dataset.classes]
    train = counts[0].astype(np.float64)
    ratio = np.array([train.max() / train.min() if len(train) and train.min() else np.inf])
    least, balance = contract.per_class, contract.balance
    ids = labels.astype(np.float64)
    rare = tuple(f"class {dataset.classes[n]} ({counts[0][n]})" for n in np.argsort(train, kind="stable")[:EXAMPLES])
    what = f"at most {balance.max:g} to 1 in training"
    return [
        Check("known_class", contract.known_class, "a class of the dataset", paths[rows], ids, 0, None),
        Check(
            "per_class",
            least.level,
            f"at least {least.min} images",
            pairs,
            counts.ravel().astype(float),
            least.min,
            None,
        ),
        Check("balance", balance.level, what, ["classes"], ratio, None, balance.max, rare),
    ]


def judge(wanted: list[Check]) -> list[dict[str, Any]]:
    """Return what Great Expectations says of each check: success, counts, and examples of what broke it."""
    import great_expectations as gx
    import pandas

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_pandas("index")
        for check in wanted:
            asset = source.add_dataframe_asset(check.name).add_batch_definition_whole_dataframe("all")
            worst = 1e308 if check.high is not None else -1e308
            frame = pandas.DataFrame({check.name: np.nan_to_num(check.values, nan=worst, posinf=1e308, neginf=-1e308)})
            expectation = gx.expectations.ExpectColumnValuesToBeBetween(
                column=check.name,
                min_value=check.low,
                max_value=check.high,
                severity="critical" if check.level == "error" else "warning",
            )
            result = asset.get_batch({"dataframe": frame}).validate(expectation, result_format="COMPLETE")
            broken = sorted(result.result.get("unexpected_index_list") or [])
            shown = [f"{check.names[n]} ({check.values[n]:.4g})" for n in broken[:EXAMPLES]]
            results.append(
                {
                    "check": check.name,
                    "level": check.level,
                    "wanted": check.what,
                    "expectation": "expect_column_values_to_be_between",
                    "min": check.low,
                    "max": check.high,
                    "success": bool(result.success),
                    "values": len(check.values),
                    "unexpected": len(broken),
                    "lowest": float(check.values.min()) if len(check.values) else None,
                    "highest": float(check.values.max()) if len(check.values) else None,
                    "examples": list(check.shown) or shown if broken else [],
                }
            )
    return results


def _sentence(result: dict[str, Any]) -> str:
    examples = ", ".join(result["examples"])
    return f"{result['check']}: {result['unexpected']} of {result['values']} not {result['wanted']}, such as {examples}"


if __name__ == "__main__":
    run(main)
