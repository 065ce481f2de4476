"""The range of every tensor of a model on the calibration subset."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.calibration import RANGES, Calibration
from pipelines.files import write_file
from pipelines.params import Section

BATCH = 16
LEVELS = 256  # of 8 bits


class Calibrate(Section):
    """The size of the subset, and how ranges are found from its histograms."""

    images: int = Field(ge=1, description="Training images to calibrate on, spread evenly over the classes.")
    bins: int = Field(ge=256, description="Bins of each histogram.")
    percentile: float = Field(gt=50, le=100, description="Share in percent of the values inside the percentile range.")


def collect(
    model: Path, calibration: Calibration, bins: int
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return the histogram, counts and edges, of the model's input and of every float tensor computed in it."""
    session, names = _all_tensors(model)
    lows, highs = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for tensors in _run(session, names, calibration):
        for name, tensor in tensors.items():
            lows[name] = min(lows[name], float(tensor.min()))
            highs[name] = max(highs[name], float(tensor.max()))
    edges = {n: np.linspace(lows[n], max(highs[n], lows[n] + 1e-6), bins + 1) for n in names}
    counts = {n: np.zeros(bins, np.int64) for n in names}
    for tensors in _run(session, names, calibration):
        for name, tensor in tensors.items():
            counts[name] += np.histogram(tensor, bins, (edges[name][0], edges[name][-1]))[0]
    return {n: (counts[n], edges[n]) for n in names}


def describe(
    name: str, counts: NDArray[np.int64], edges: NDArray[np.float64], percentile: float
) -> dict[str, float | str]:
    """Return the ranges of one tensor, by method, from its histogram.

    `minmax` is the whole range; `percentile` leaves equal shares out on both sides; `entropy` and `mse` shrink the
    whole range by the factor that loses least.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    low, high = float(edges[0]), float(edges[-1])
    share = counts.cumsum() / counts.sum()
    outside = (100 - percentile) / 200
    inside = 1 - (outside if low < 0 else 2 * outside)
    ranges = {
        "minmax": (low, high),
        "percentile": (
            float(edges[np.searchsorted(share, outside, side="right")]) if low < 0 else low,
            float(edges[min(int(np.searchsorted(share, inside)) + 1, len(counts))]),
        ),
        "entropy": _shrink(counts, middles, low, high, _divergence),
        "mse": _shrink(counts, middles, low, high, _squared_error),
    }
    row: dict[str, float | str] = {"tensor": name, "mean": float((counts * middles).sum() / counts.sum())}
    for method in RANGES:
        row[f"{method}_low"], row[f"{method}_high"] = ranges[method]
    return row


def _shrink(
    counts: NDArray[np.int64], middles: NDArray[np.float64], low: float, high: float, loss: Any
) -> tuple[float, float]:
    factors = np.linspace(0.2, 1.0, 81)
    losses = [loss(counts, middles, low * f, high * f) for f in factors]
    best = float(factors[len(factors) - 1 - int(np.argmin(losses[::-1]))])
    return low * best, high * best


def _quantized(middles: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Round values to the levels of a range that is first widened to hold zero, as quantizers do."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (LEVELS - 1) or 1.0
    zero_point = round(-low / scale)
    levels: NDArray[np.float64] = np.clip(np.rint(middles / scale) + zero_point, 0, LEVELS - 1)
    return (levels - zero_point) * scale


def _squared_error(counts: NDArray[np.int64], middles: NDArray[np.float64], low: float, high: float) -> float:
    return float((counts * (middles - _quantized(middles, low, high)) ** 2).sum())


def _divergence(counts: NDArray[np.int64], middles: NDArray[np.float64], low: float, high: float) -> float:
    """Return KL(P || Q): P the histogram with what lies outside moved to the ends, Q what 8 bits keep of the inside.

    The bin that holds zero counts as its neighbour, or the zeros of a ReLU would drown the rest.
    Source: Migacz, 8-bit Inference with TensorRT, GTC 2017, here for a range of two sides.
    """
    zero = int(np.abs(middles).argmin())
    counts = counts.copy()
    counts[zero] = counts[min(zero + 1, len(counts) - 1)]
    inside = np.flatnonzero((middles >= low) & (middles <= high))
    if len(inside) < LEVELS / 2:
        return float("inf")
    first, last = inside[0], inside[-1] + 1
    kept = counts[first:last].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    levels = np.minimum((np.arange(len(kept)) * LEVELS) // len(kept), LEVELS - 1)
    sums = np.bincount(levels, kept, LEVELS)
    filled = np.bincount(levels, kept > 0, LEVELS)
    spread = np.where(kept > 0, (sums / np.maximum(filled, 1))[levels], 0.0)
    p = (clipped + 1e-9) / (clipped + 1e-9).sum()
    q = (spread + 1e-9) / (spread + 1e-9).sum()
    return float((p * np.log(p / q)).sum())


def _all_tensors(model: Path) -> tuple[Any, list[str]]:
    """Return a session of the model that gives every float tensor it computes, and their names."""
    import onnx
    import onnxruntime

    proto = onnx.shape_inference.infer_shapes(onnx.load(model))
    known = {v.name: v for v in [*proto.graph.value_info, *proto.graph.output]}
    names = [proto.graph.input[0].name]
    del proto.graph.output[:]
    for node in proto.graph.node:
        for name in node.output:
            info = known.get(name)
            is_float = info is not None and info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            if is_float and node.op_type != "Constant":
                proto.graph.output.append(info)
                names.append(name)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]), names


def _run(session: Any, names: list[str], calibration: Calibration) -> Any:
    from tqdm import tqdm

    total = -(-len(calibration) // BATCH)
    for batch in tqdm(calibration.inputs(BATCH), desc="calibrate", total=total, unit=" batches", mininterval=1):
        yield {names[0]: batch, **dict(zip(names[1:], session.run(names[1:], {names[0]: batch}), strict=True))}


def write_csv(path: Path, rows: list[dict[str, float | str]]) -> None:
    """Write the ranges of all tensors as CSV, one row each."""
    with write_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str) else f"{v:.8g}" for k, v in row.items()} for row in rows)
