"""A small copy of the project, for tests that run the line: the real params.yaml, shrunk."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import params

ROOT = Path(__file__).parent.parent
SHRUNK = {
    "threads": 1,
    "data": {"source": {"size": 16}},
    "contract": {"sharpness": {"max": 10.0}},
    "input": {"height": 16, "width": 16},
    "teacher": {"widths": [16, 32], "depths": [1, 1]},
    "train": {"epochs": 2},
    "student": {"stem": 8, "widths": [32, 48], "depths": [1, 1]},
    "distill": {"schedule": {"epochs": 2}},
    "prune": {"ratio": 0.3, "schedule": {"epochs": 1}},
    "calibrate": {"images": 32},
    "measure": {"warmup": 2, "runs": 20, "resamples": 100, "elsewhere": 16},
}
# What is measured, and what holds a measurement, differs from build to build; all else must not.
MEASURED = (
    "build/baseline",
    "build/metrics/",
    "build/took/",
    "build/verdicts/",
    "build/bundles/",
    "build/report",
    "build/register.json",
)


def merge(value: dict, changes: dict) -> dict:
    """Return `value` with `changes` in it, key by key."""
    return {
        **value,
        **{k: merge(value[k], v) if isinstance(v, dict) and k in value else v for k, v in changes.items()},
    }


def change(root: Path, changes: dict) -> None:
    """Change params.yaml of a copy."""
    file = root / "params.yaml"
    file.write_text(yaml.safe_dump(merge(params.read(file), changes), sort_keys=False))


def copy(root: Path, shrunk: dict | None = None, whole: bool = False, example: str = "") -> Path:
    """Make `root` a git repository with the project's files as they are here, and (but for `whole`) shrunk params.

    `example` is a folder of examples/ whose params.yaml is taken in place of the project's; nothing else shrinks it.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")) and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    if example:
        shutil.copyfile(ROOT / "examples" / example / "params.yaml", root / "params.yaml")
    change(root, merge({} if whole or example else SHRUNK, shrunk or {}))
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "The project"]):
        run(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)
    return root


def run(root: Path, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a copy, with this interpreter's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        words, cwd=root, capture_output=True, text=True, check=False, env={**kept, "PATH": path, **environment}
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def build_here(root: Path) -> None:
    """Run the stages of a copy in this process, but for `register`: in half of the time that `dvc repro` takes."""
    from dvc.repo import Repo
    from networkx import topological_sort

    with pytest.MonkeyPatch.context() as patch, Repo(str(root)) as repo:
        patch.chdir(root)
        for stage in reversed(list(topological_sort(repo.index.graph))):
            python, _, module, *words = stage.cmd.split()
            assert python == "python"
            if module != "registry.register":
                patch.setattr(sys, "argv", [module, *words])
                runpy.run_module(module, run_name="__main__", alter_sys=True)


def executed(done: subprocess.CompletedProcess[str] | str) -> list[str]:
    """Return the stages that a `dvc repro` ran, by what it said."""
    said = done if isinstance(done, str) else done.stdout
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage '")]


def outputs(root) -> dict[str, str]:
    """Return path -> hash of what dvc.lock holds and is no measurement."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    outs = {o["path"]: o["md5"] for stage in lock["stages"].values() for o in stage["outs"]}
    return {path: md5 for path, md5 in outs.items() if not path.startswith(MEASURED)}
