"""What the flow costs: `python -m flows.build` against `dvc repro`, whole and no-op, with and without a server."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import line
from tests.flows import servers

NOOPS = 3


def main() -> None:
    """Print seconds and ratios, and as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the shrunk params of the tests instead of the real ones")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), whole=not options.short)
    if options.json:
        print(json.dumps(found, indent=2, sort_keys=True))
        return
    for kind in ("whole", "noop"):
        base = found[f"{kind}_dvc_s"]
        print(f"{kind:6} `dvc repro`                {base:7.1f} s")
        for way, name in (("server", "flow, with a server"), ("alone", "flow, without one")):
            if f"{kind}_{way}_s" in found:
                seconds = found[f"{kind}_{way}_s"]
                print(f"{kind:6} {name:26} {seconds:7.1f} s  {seconds / base:5.2f} times, {seconds - base:+.1f} s")


def measure(folder: Path, whole: bool) -> dict[str, float]:
    """Return the seconds of each way to build the same line; each builds from nothing, in a copy of its own."""
    found: dict[str, float] = {}
    server = servers.Prefect(folder)
    os.environ["PREFECT_HOME"] = str(folder / "alone")
    server.start()
    try:
        ways = {"dvc": ["dvc", "repro"], "server": [sys.executable, "-m", "flows.build"]}
        for way, words in ways.items():
            root = line.copy(folder / way, whole=whole)
            more = server.client if way == "server" else {}
            found[f"whole_{way}_s"] = timed(root, words, more)
            found[f"noop_{way}_s"] = statistics.median(timed(root, words, more) for _ in range(NOOPS))
            if way == "server":
                timed(root, words, {})  # makes the database of runs without a server, once
                found["noop_alone_s"] = statistics.median(timed(root, words, {}) for _ in range(NOOPS))
            shutil.rmtree(root)
    finally:
        server.stop()
    return found


def timed(root: Path, words: list[str], more: dict[str, str]) -> float:
    """Run a command in a copy and return its seconds; its output goes to standard error, so that progress is seen."""
    start = time.perf_counter()
    environment = {**servers.environment(**more), "PYTHONPATH": str(root)}
    subprocess.run(words, cwd=root, check=True, stdout=sys.stderr, env=environment)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
