"""Holds the index against the data contract with Great Expectations, and writes Data Docs."""

import html
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.data import Dataset
from pipelines.files import write_file, write_folder, write_json
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


@dataclass(frozen=True)
class Check:
    """One expectation: the column `values` must lie in low..high; `names` says what each value belongs to."""

    name: str
    level: str
    what: str
    names: list[str]
    values: NDArray[np.float64] = field(repr=False)
    low: float | None
    high: float | None


def main(data: Path, out: Path) -> None:
    """Write `out`: `results.json` and `docs/index.html`.

    Raises StageError naming each violated expectation of level `error`, its count, and three example files; the
    docs are then kept under `.quantmill/contract`.
    """
    dataset = Dataset(data)
    results = judge(checks(dataset, section("contract", Contract)))
    broken = [r for r in results if not r["success"] and r["level"] == "error"]
    with write_folder(KEPT if broken else out) as folder:
        write_json(folder / "results.json", {"checks": results, "dataset": dataset.info, "passed": not broken})
        with write_file(folder / "docs" / "index.html") as part:
            part.write_text(page(dataset.info, results), encoding="utf-8")
    for result in results:
        if not result["success"]:
            print(f"{result['level']}: {_sentence(result)}")
    if broken:
        sentences = "; ".join(_sentence(result) for result in broken)
        raise StageError(f"the data breaks its contract: {sentences}; see {KEPT}/docs/index.html")
    print(f"{len(results)} expectations, {sum(r['success'] for r in results)} met")


def checks(dataset: Dataset, contract: Contract) -> list[Check]:
    """Return the contract as checks of columns, over images, class and split pairs, and the dataset as a whole."""
    paths = [str(p) for p in dataset.column("path")]
    info = dataset.info

    def of_images(name: str, what: str, bound: Any, column: str, low: float, high: float) -> Check:
        return Check(name, bound.level, what, paths, dataset.column(column).astype(np.float64), low, high)

    edge, channels, bits = contract.edge, contract.channels, contract.bits
    found = [
        of_images("width", f"{edge.min:g} to {edge.max:g} pixels", edge, "width", edge.min, edge.max),
        of_images("height", f"{edge.min:g} to {edge.max:g} pixels", edge, "height", edge.min, edge.max),
        of_images("channels", str(channels.value), channels, "channels", channels.value, channels.value),
        of_images("bits", str(bits.value), bits, "bits", bits.value, bits.value),
    ]
    for name in ("brightness", "sharpness"):
        bound = getattr(contract, name)
        found.append(of_images(name, f"{bound.min:g} to {bound.max:g}", bound, name, bound.min, bound.max))
    total = sum(info["images"].values()) + info["rejected"]
    share = np.array([info["rejected"] / total])
    most = contract.unreadable
    found.append(
        Check("unreadable", most.level, f"at most {most.max:g} of the files", ["rejected.json"], share, None, most.max)
    )
    found += _of_labels(dataset, contract, paths)
    splits: dict[str, set[str]] = {}
    for pixels, split in zip(dataset.column("pixel_hash"), dataset.column("split"), strict=True):
        splits.setdefault(pixels, set()).add(split)
    count = np.array([len(splits[pixels]) for pixels in dataset.column("pixel_hash")], np.float64)
    return [*found, Check("duplicates", contract.duplicates, "each image in one split only", paths, count, 1, 1)]


def _of_labels(dataset: Dataset, contract: Contract, paths: list[str]) -> list[Check]:
    labels = [np.atleast_1d(dataset.labels_of(row)) for row in range(len(paths))]
    lowest = np.array([each.min() if len(each) else 0 for each in labels], np.float64)
    counts = Counter((s, int(n)) for s, each in zip(dataset.column("split"), labels, strict=True) for n in set(each))
    pairs = [(split, n) for split in SPLITS for n in range(len(dataset.classes))]
    names = [f"class {dataset.classes[n]} in {split}" for split, n in pairs]
    values = np.array([counts[pair] for pair in pairs], np.float64)
    train = np.array([counts["train", n] for n in range(len(dataset.classes))], np.float64)
    ratio = np.array([train.max() / train.min() if train.min() else np.inf])
    least, balance = contract.per_class, contract.balance
    return [
        Check("known_class", contract.known_class, "labels that the dataset names", paths, lowest, 0, None),
        Check("per_class", least.level, f"at least {least.min} images", names, values, least.min, None),
        Check("balance", balance.level, f"at most {balance.max:g} to 1", ["training split"], ratio, None, balance.max),
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
            frame = pandas.DataFrame(
                {check.name: np.nan_to_num(check.values, nan=np.inf, posinf=1e308), "of": check.names}
            )
            expectation = gx.expectations.ExpectColumnValuesToBeBetween(
                column=check.name,
                min_value=check.low,
                max_value=check.high,
                severity="critical" if check.level == "error" else "warning",
            )
            result = asset.get_batch({"dataframe": frame}).validate(expectation, result_format="COMPLETE")
            broken = sorted(result.result.get("unexpected_index_list") or [])
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
                    "examples": [{"of": check.names[n], "value": float(check.values[n])} for n in broken[:EXAMPLES]],
                }
            )
    return results


def _sentence(result: dict[str, Any]) -> str:
    examples = ", ".join(f"{e['of']} ({e['value']:.4g})" for e in result["examples"])
    return f"{result['check']}: {result['unexpected']} of {result['values']} not {result['wanted']}, such as {examples}"


def page(info: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Return the Data Docs as one page that needs nothing else."""
    rows = []
    for r in results:
        state = "met" if r["success"] else r["level"]
        examples = "<br>".join(html.escape(f"{e['of']} ({e['value']:.4g})") for e in r["examples"]) or "&ndash;"
        found = "&ndash;" if r["lowest"] is None else f"{r['lowest']:.4g} to {r['highest']:.4g}"
        rows.append(
            f"<tr class={state}><td><b>{state}</b><td>{html.escape(r['check'])}<td>{html.escape(r['wanted'])}"
            f"<td>{found}<td class=n>{r['values']:,}<td class=n>{r['unexpected']:,}<td>{examples}"
        )
    met = sum(r["success"] for r in results)
    images = ", ".join(f"{info['images'][s]:,} {s}" for s in SPLITS)
    classes = html.escape(", ".join(info["classes"][:50]))
    return f"""<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Data contract</title><style>
body{{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2530}}
h1{{margin-bottom:.2rem}} p{{margin:.2rem 0 1rem;color:#51606f}}
div{{overflow-x:auto}} table{{border-collapse:collapse;width:100%}}
th,td{{text-align:left;padding:.45rem .7rem;border-bottom:1px solid #dde3ea;vertical-align:top}}
.n{{text-align:right}} .met b{{color:#1a7f37}} .warn b{{color:#9a6700}} .error b{{color:#cf222e}}
.error{{background:#fff1f0}} .warn{{background:#fff8e5}}
</style><h1>Data contract: {met} of {len(results)} expectations met</h1>
<p>{images} images; {info["rejected"]:,} files left out; {len(info["classes"])} classes: {classes};
{info["channels"]} channel(s) of {info["bits"]} bits</p>
<div><table><thead><tr><th>Result<th>Expectation<th>Wanted<th>Found<th class=n>Values<th class=n>Unexpected<th>Examples
<tbody>{"".join(rows)}</table></div></html>
"""


if __name__ == "__main__":
    run(main)
