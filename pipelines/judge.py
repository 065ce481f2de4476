"""Judges one target's metrics against its gates with Great Expectations. It measures nothing."""

import math
import warnings
from pathlib import Path
from typing import Any

from pipelines.files import read_json, write_json
from pipelines.params import section
from pipelines.stage import run
from pipelines.targets import FLOOR, Bound, Target


def main(name: str, metrics: Path, out: Path) -> None:
    """Write `out`: the verdict on target `name`, `passed`, `failed` or `inconclusive`, and each gate's reason.

    A gate on a metric that has an interval is a test of non-inferiority: it passes when the whole interval keeps
    the bound, fails when none of it does, and is inconclusive otherwise.
    """
    measured = read_json(metrics)
    verdict = judge(measured, {**always(measured), **section(f"targets.{name}", Target).gates})
    if note := measured.get("not_here") or measured.get("chosen"):
        verdict["note"] = note
    write_json(out, verdict)
    print(f"{name}: {verdict['verdict']}")
    if "note" in verdict:
        print(f"  {verdict['note']}")
    for gate in verdict["gates"]:
        print(f"  {gate['result']}: {gate['reason']}")


def always(metrics: dict[str, Any]) -> dict[str, Bound]:
    """Return the gates that need no declaring: INT8 is INT8, has not collapsed, and was calibrated on other images."""
    if metrics.get("precision") != "int8":
        return {}
    return {"int8_share": Bound(min=0.5), "calibration_overlap": Bound(max=0), **FLOOR}


def judge(metrics: dict[str, Any], gates: dict[str, Bound]) -> dict[str, Any]:
    """Return the verdict on metrics: that of the worst gate, with all of them."""
    bounds = [(m, side, getattr(g, side)) for m, g in gates.items() for side in ("min", "max")]
    bounds = [(metric, side, limit) for metric, side, limit in bounds if limit is not None]
    kept = {which: _expect(metrics, bounds, which) for which in ("worst", "best")}
    results = []
    for (metric, side, limit), worst, best in zip(bounds, kept["worst"], kept["best"], strict=True):
        value, low, high = metrics.get(metric), metrics.get(f"{metric}_low"), metrics.get(f"{metric}_high")
        result = "passed" if worst else "inconclusive" if best or value is None else "failed"
        results.append(
            {
                "metric": metric,
                "bound": side,
                "threshold": limit,
                "value": value,
                "low": low,
                "high": high,
                "result": result,
                "reason": _reason(metric, side, limit, result, metrics),
            }
        )
    found = {gate["result"] for gate in results}
    verdict = next((v for v in ("failed", "inconclusive") if v in found), "passed")
    return {"verdict": verdict, "gates": results}


def _expect(metrics: dict[str, Any], bounds: list[tuple[str, str, float]], which: str) -> list[bool]:
    """Return which bounds hold at the worst or at the best end of each metric's interval."""
    if not bounds:
        return []
    import great_expectations as gx
    import pandas

    columns = {}
    for metric, side, _ in bounds:
        end = {("max", "worst"): "high", ("max", "best"): "low", ("min", "worst"): "low", ("min", "best"): "high"}
        value = metrics.get(f"{metric}_{end[side, which]}", metrics.get(metric))
        columns[f"{metric} {side}"] = [math.nan if value is None else float(value)]
    expectations = [
        expectation
        for metric, side, limit in bounds
        for expectation in (
            gx.expectations.ExpectColumnValuesToNotBeNull(column=f"{metric} {side}"),
            gx.expectations.ExpectColumnValuesToBeBetween(column=f"{metric} {side}", **{f"{side}_value": limit}),
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("metrics").add_dataframe_asset("metrics")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": pandas.DataFrame(columns)})
        found = batch.validate(gx.ExpectationSuite("gates", expectations=expectations)).results
    held: dict[str, bool] = {}
    for result in found:
        column = result.expectation_config.kwargs["column"]
        held[column] = held.get(column, True) and bool(result.success)
    return [held[f"{metric} {side}"] for metric, side, _ in bounds]


def _reason(metric: str, side: str, limit: float, result: str, metrics: dict[str, Any]) -> str:
    value, low, high = metrics.get(metric), metrics.get(f"{metric}_low"), metrics.get(f"{metric}_high")
    if value is None:
        return f"{metric} could not be measured on this machine"
    bound = f"{'at most' if side == 'max' else 'at least'} {limit:g} is wanted"
    if metric in FLOOR and value < (FLOOR[metric].min or 0):
        bound += "; INT8 has lost what FP32 knows, and a search (`search: fast`) finds the operators to keep in float"
    if low is None or high is None:
        return f"{metric} is {value:.4g}; {bound}"
    where = f" in {metrics['worst_slice']!r}" if metric == "drop_worst_slice" else ""
    text = f"{metric} is {value:.4g}{where} ({low:.4g} to {high:.4g}); {bound}"
    if result == "inconclusive":
        images = metrics.get(f"{metric}_images")
        split = f"slice {metrics['least_sure_slice']!r}" if images else "test split"
        text += f"; {_images_needed(images or metrics['images'], value, low, high, limit, split)}"
    return text


def _images_needed(images: int, value: float, low: float, high: float, limit: float, split: str) -> str:
    """Say how many test images would settle it: the interval shrinks with the square root of their number."""
    reach = high - value if limit > value else value - low
    if abs(limit - value) < reach / 30:
        return f"the {split} has {images} images, and the value lies too near to the bound for any number to settle it"
    needed = math.ceil(images * (reach / abs(limit - value)) ** 2)
    return f"the {split} has {images} images, about {max(needed, images + 1):,} are needed"


if __name__ == "__main__":
    run(main)
