"""Asks the harness to time artifacts: in a process of its own on this machine, or on another over SSH."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines import remote


def interleaved(
    runtime: str, artifacts: dict[str, Path], shape: list[int], options: dict[str, int], device: str
) -> dict[str, Any]:
    """Return the milliseconds of each run of each artifact, one after the other in turn in one process.

    `shape` is C, H, W; `options` has `threads`, `warmup` and `runs`; `device` is `cpu` or an `ssh://` address. Raises
    StageError when the machine there cannot be reached, or lacks something.
    """
    return _ask(runtime, artifacts, {"what": "latency", "shape": shape, **options}, device)


def alone(runtime: str, artifact: Path, shape: list[int], options: dict[str, int], device: str) -> dict[str, Any]:
    """Return load time, peak memory, throughput and energy of one artifact in a fresh process.

    `options` has `threads`, `warmup`, `runs` and `batch`. Keys: `load_ms`; `peak_memory_mb`, of the whole process;
    `throughput_per_s`, images in batches; `energy_mj`, of the processor package per image, null without RAPL.
    """
    return _ask(runtime, {"it": artifact}, {"what": "alone", "shape": shape, **options}, device)


def _ask(runtime: str, artifacts: dict[str, Path], request: dict[str, Any], device: str) -> dict[str, Any]:
    if device != "cpu":
        return remote.ask(device, runtime, artifacts, request)
    request["artifacts"] = {name: str(path) for name, path in artifacts.items()}
    command = [sys.executable, "-m", "pipelines.harness", runtime]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measuring process failed: {done.stderr.strip().splitlines()[-1:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
