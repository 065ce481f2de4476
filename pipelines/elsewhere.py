"""The same artifact in other runtimes and with fewer instructions: how far its answers depend on where it runs.

A CPU without VNNI adds the products of unsigned and signed bytes in 16 bits, which saturate; kernels round in other
places. Each place is a process of its own, which reads one JSON request on standard input.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipelines import runtimes
from pipelines.evaluation import Outputs, TestSet, read_outputs, write_outputs
from pipelines.runtimes import Elsewhere

TIMEOUT = 600  # seconds for one place


def compare(runtime: ModuleType, artifact: Path, test: TestSet, said: Outputs) -> dict[str, dict[str, Any]]:
    """Return by place of `runtime.ELSEWHERE` what differs there from what the artifact `said` of the test split.

    On images spread evenly over the split: `changed`, the share of predictions that are others; `max_difference` of an
    output, relative to the largest. A place that does not run the artifact has `not_run`, the reason, instead.
    """
    places: tuple[Elsewhere, ...] = getattr(runtime, "ELSEWHERE", ())
    if not places:
        return {}
    count = min(test.measure.elsewhere, len(test.rows))
    picked = np.linspace(0, len(test.rows) - 1, count).round().astype(int)
    here = [output[picked].astype(np.float32) for output in said]
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npy"
        shape = (count, *test.shape)
        images = np.lib.format.open_memmap(inputs, mode="w+", dtype=np.float32, shape=shape)
        for number, row in enumerate(test.rows[picked]):
            images[number] = test.preprocess(test.dataset.image(row))
        images.flush()
        for place in places:
            outputs = Path(folder) / "outputs.npz"
            if reason := _not_run(place, artifact, inputs, outputs, test):
                found[place.name] = {"not_run": reason}
                continue
            there = read_outputs(outputs)
            largest = max(float(np.abs(one).max()) for one in here) or 1.0
            furthest = max(float(np.abs(one - other).max()) for one, other in zip(here, there, strict=True))
            changed = 1 - test.task.agreement(here, there)
            found[place.name] = {"changed": changed, "max_difference": furthest / largest, "images": count}
    return found


def most_changed(found: dict[str, dict[str, Any]]) -> float | None:
    """Return the largest share of predictions that another place changes, None where no other place ran it."""
    return max((row["changed"] for row in found.values() if "changed" in row), default=None)


def _not_run(place: Elsewhere, artifact: Path, inputs: Path, outputs: Path, test: TestSet) -> str | None:
    """Let a place answer into `outputs`; return why it did not, or None."""
    if lacking := runtimes.missing(runtimes.load(place.runtime)):
        return f"{', '.join(lacking)} not installed"
    request = {
        "runtime": place.runtime,
        "load": place.load,
        "artifact": str(artifact),
        "inputs": str(inputs),
        "outputs": str(outputs),
        "threads": test.measure.threads,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.elsewhere"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env={**os.environ, **dict(place.environment)},
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT} s"
    said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    return " ".join(said[-1].split())[:200] if done.returncode else None


def _answer(request: dict[str, Any]) -> None:
    module = importlib.import_module(f"pipelines.runtimes.{request['runtime']}")
    predict = getattr(module, request["load"])(Path(request["artifact"]), request["threads"])
    inputs = np.load(request["inputs"], mmap_mode="r")
    parts = [predict(np.array(inputs[n : n + 1])) for n in range(len(inputs))]  # some artifacts take one image
    write_outputs(Path(request["outputs"]), [np.concatenate(output) for output in zip(*parts, strict=True)])


if __name__ == "__main__":
    _answer(json.loads(sys.stdin.read()))
