"""What orchestration costs: `dvc repro` against the same stages called as functions in one process, and a no-op."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.files import read_json
from tests import line

# Calls each stage's function in the order of the graph, without DVC; MLflow is what `register` alone talks to.
SCRIPT = """
import importlib, inspect, sys
from pathlib import Path
for words in {commands!r}:
    main = importlib.import_module(words[0]).main
    kinds = [p.annotation for p in inspect.signature(main).parameters.values()]
    main(*(word if kind is str else Path(word) for kind, word in zip(kinds, words[1:], strict=True)))
"""


def main() -> None:
    """Print seconds and ratios, and as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the shrunk params of the tests instead of the real ones")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = line.copy(Path(folder), whole=not options.short)
        found = measure(root)
    if options.json:
        print(json.dumps(found, indent=2, sort_keys=True))
        return
    print(f"whole line by `dvc repro`            {found['repro_s']:7.1f} s")
    print(f"the same stages in one process       {found['bare_s']:7.1f} s")
    print(f"ratio (aim: at most 1.25)            {found['ratio']:7.2f}")
    print(f"no-op `dvc repro` (aim: under 3 s)   {found['noop_s']:7.2f} s, median of 5")
    print(f"OpenVINO INT8 / FP32 (aim: over 1.5) {found['openvino_int8_speedup']:7.2f}, p50 in turn in one process")


def measure(root: Path) -> dict[str, float]:
    """Return the seconds of each way through the line in the copy `root`, and their ratio."""
    listed = line.run(root, "dvc", "stage", "list", "--name-only").stdout.split()
    script = (
        "import json\nfrom dvc.repo import Repo\nimport networkx\n"
        "graph = Repo('.').index.graph\n"
        "order = list(networkx.dfs_postorder_nodes(graph))\n"
        "print(json.dumps([s.cmd.partition(' --took ')[0].split()[2:] for s in order if s.cmd]))"
    )
    commands = json.loads(line.run(root, "python", "-c", script).stdout.splitlines()[-1])
    assert len(commands) == len(listed)
    commands = [words for words in commands if words[0] != "registry.register"]
    start = time.perf_counter()
    call(root, [sys.executable, "-c", SCRIPT.format(commands=commands)])
    bare = time.perf_counter() - start
    line.run(root, "rm", "-r", "build")
    start = time.perf_counter()
    call(root, ["dvc", "repro"])
    repro = time.perf_counter() - start
    noops = []
    for _ in range(5):
        start = time.perf_counter()
        call(root, ["dvc", "repro"])
        noops.append(time.perf_counter() - start)
    return {
        "bare_s": bare,
        "noop_s": statistics.median(noops),
        "openvino_int8_speedup": read_json(root / "build/metrics/openvino-int8.json")["speedup"],
        "ratio": repro / bare,
        "repro_s": repro,
    }


def call(root: Path, words: list[str]) -> None:
    """Run a command in the copy; its output goes to standard error, so that progress is seen."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(words, cwd=root, check=True, stdout=sys.stderr, env=environment)


if __name__ == "__main__":
    main()
