"""The harness that times artifacts, the same for every runtime, as a program of its own.

Needs Python, numpy and the runtime alone, so that it also runs as one file on another machine. Reads one JSON request
on standard input and answers with one JSON on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.float32]], list[NDArray[Any]]]
ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def main(load: Callable[[Path, int], Predict]) -> None:
    """Answer the request on standard input with artifacts that `load` opens."""
    asked = json.loads(sys.stdin.read())
    os.environ["OMP_NUM_THREADS"] = str(asked["threads"])
    print(json.dumps((_latency if asked["what"] == "latency" else _alone)(asked, load)))


def _latency(request: dict[str, Any], load: Callable[[Path, int], Predict]) -> dict[str, Any]:
    image = _images(request["shape"], 1)
    models = {name: load(Path(path), request["threads"]) for name, path in request["artifacts"].items()}
    for predict in models.values():
        for _ in range(request["warmup"]):
            predict(image)
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for _ in range(request["runs"]):
        for name in order:
            start = time.perf_counter()
            models[name](image)
            times[name].append((time.perf_counter() - start) * 1e3)
        order.append(order.pop(0))  # who follows whom changes
    return {"times_ms": times}


def _alone(request: dict[str, Any], load: Callable[[Path, int], Predict]) -> dict[str, Any]:
    image = _images(request["shape"], 1)
    start = time.perf_counter()
    predict = load(Path(request["artifacts"]["it"]), request["threads"])
    predict(image)
    load_ms = (time.perf_counter() - start) * 1e3
    for _ in range(request["warmup"]):
        predict(image)
    memory = _peak_memory()
    before, start = _energy(), time.perf_counter()
    for _ in range(request["runs"]):
        predict(image)
    after = _energy()
    energy = (after - before) / request["runs"] if before is not None and after is not None else None
    batch = _images(request["shape"], request["batch"])
    predict(batch)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        predict(batch)
        batches += 1
    return {
        "load_ms": load_ms,
        "peak_memory_mb": memory,
        "energy_mj": energy if energy is None or energy > 0 else None,  # the counter wraps
        "throughput_per_s": batches * request["batch"] / (time.perf_counter() - start),
    }


def _images(shape: list[int], count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def _peak_memory() -> float | None:
    """Return the most resident memory of this process so far in MiB; getrusage would count its parent's too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def _energy() -> float | None:
    """Return the package's energy counter in millijoules."""
    try:
        return int(ENERGY.read_text()) / 1e3
    except OSError:
        return None


if __name__ == "__main__":
    main(importlib.import_module(f"pipelines.runtimes.{sys.argv[1]}").load)
