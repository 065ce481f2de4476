"""Plots that stages leave for people, as PNG without dates."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import RANGES

PER_PAGE = 24


def histograms(
    folder: Path,
    found: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    rows: list[dict[str, float | str]],
) -> None:
    """Write `histograms-NN.png`: the values of each activation on a log scale, and the range that each method takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(found)
    colours = dict(zip(RANGES, ("tab:grey", "tab:green", "tab:orange", "tab:red"), strict=True))
    for page, start in enumerate(range(0, len(names), PER_PAGE), 1):
        shown = names[start : start + PER_PAGE]
        lines = -(-len(shown) // 4)
        height = 2.2 * lines + 0.7
        figure = Figure(figsize=(14, height))
        FigureCanvasAgg(figure)
        # Placed by hand: a layout engine would draw every label twice, which takes a minute for a few hundred tensors.
        figure.subplots_adjust(0.03, 0.7 / height, 0.99, 1 - 0.25 / height, wspace=0.16, hspace=0.35)
        for place, name in enumerate(shown):
            counts, edges = found[name]
            row: dict[str, Any] = rows[start + place]
            axes = figure.add_subplot(lines, 4, place + 1)
            starts = np.array([group[0] for group in np.array_split(np.arange(len(counts)), 128)])
            heights = np.add.reduceat(counts, starts)
            axes.stairs(heights, [*edges[starts], edges[-1]], fill=True, color="tab:blue")
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.locator_params(axis="x", nbins=5)
            axes.set_title(name[-38:], fontsize=7)
            axes.tick_params(labelsize=6)
            for method in RANGES:
                for side in ("low", "high"):
                    axes.axvline(row[f"{method}_{side}"], color=colours[method], linewidth=1, label=method)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="lower center", ncols=len(unique), fontsize=8)
        figure.savefig(folder / f"histograms-{page:02d}.png", dpi=80, metadata={"Software": None})
