"""dvc.yaml is true: what each stage imports and reads stands in it, and imports point one way."""

import ast
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipelines import params

ROOT = Path(__file__).parent.parent
# They carry values and files around, and compute nothing: an edit of an error message trains no model anew.
PLUMBING = {"pipelines/__init__.py", "pipelines/files.py", "pipelines/params.py", "pipelines/stage.py"}
PLUMBING |= {"registry/__init__.py"}
# Imported for a name or a type only, or by a stage whose output does not depend on it.
BESIDES = {"register": {"pipelines"}}


def modules_of(path: Path) -> set[str]:
    """Return the files of our packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            base = ROOT / name.replace(".", "/")
            for file in (base.with_suffix(".py"), base / "__init__.py"):
                if name.split(".")[0] in ("pipelines", "flows", "registry") and file.is_file():
                    found.add(file.relative_to(ROOT).as_posix())
    return found


def closure(paths: set[str]) -> set[str]:
    """Return files and all that they import, directly or not."""
    found, waiting = set(), list(paths)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += modules_of(ROOT / one)
    return found


def files(deps: set[str]) -> set[str]:
    """Return the modules among the deps of a stage, also those in the folder of a task."""
    folders = [d for d in deps if d.startswith("pipelines/tasks/")]
    inside = {p.relative_to(ROOT).as_posix() for d in folders for p in (ROOT / d).glob("*.py")}
    return {d for d in deps if d.endswith(".py")} | inside


STAGES = {s.addressing: s for s in Repo(str(ROOT)).index.stages}


@pytest.mark.parametrize("name", STAGES)
def test_deps_cover_what_the_stage_imports(name):
    stage = STAGES[name]
    module = stage.cmd.split()[2].replace(".", "/") + ".py"
    deps = {str(d) for d in stage.deps}
    besides = BESIDES.get(name.partition("@")[0], set())
    missing = {
        file
        for file in closure({module, *files(deps)}) - PLUMBING
        if not any(file == d or file.startswith(f"{d}/") for d in deps | besides)
    }
    assert not missing, f"{name}: add to its deps in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("name", STAGES)
def test_paths_of_the_command_are_its_deps_and_outs(name):
    stage = STAGES[name]
    words = [w for w in stage.cmd.split() if w.startswith("build/")]
    declared = {str(p) for p in [*stage.deps, *stage.outs]}
    assert set(words) <= declared, f"{name}: {set(words) - declared} stand in cmd but not in deps or outs"


def test_params_of_stages_and_sections_of_the_file_match():
    known = set(params.read(ROOT / "params.yaml"))
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    used = {key.split(".")[0] for stage in declared.values() for key in stage.get("do", stage).get("params", [])}
    assert used <= known, f"dvc.yaml names sections that params.yaml lacks: {used - known}"
    assert known <= used | {"flow"}, f"no stage depends on these sections of params.yaml: {known - used}"


@pytest.mark.parametrize("file", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("pipelines/**/*.py")))
def test_pipelines_import_neither_flows_nor_registry(file):
    assert not {m for m in modules_of(ROOT / file) if not m.startswith("pipelines")}


@pytest.mark.parametrize("file", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("registry/**/*.py")))
def test_registry_imports_no_flows(file):
    assert not {m for m in modules_of(ROOT / file) if m.startswith("flows")}


def test_stages_do_not_import_stages():
    stages = {s.cmd.split()[2].replace(".", "/") + ".py" for s in STAGES.values()} - {"pipelines/check.py"}
    for stage in stages:
        allowed = {"registry/register.py": {"pipelines/export.py"}}.get(stage, set())
        assert not (modules_of(ROOT / stage) & stages) - {stage} - allowed, stage


def test_a_stage_says_what_it_is():
    assert all(s.desc for s in STAGES.values())
