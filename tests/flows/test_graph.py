"""The graph that flows read is DVC's own."""

import re
import subprocess
import sys

import pytest
import yaml

from flows import graph
from pipelines.stage import StageError
from tests import line
from tests.flows import servers


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = servers.project(tmp_path_factory.mktemp("small") / "project")
    line.run(root, "dvc", "repro")
    return root


def test_edges_are_those_that_dvc_draws():
    dot = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"], cwd=line.ROOT, capture_output=True, text=True, check=True
    ).stdout
    drawn = {(a, b) for a, b in re.findall(r'"([^"]+)" -> "([^"]+)"', dot)}
    found = graph.needs(line.ROOT)
    assert {(need, stage) for stage, needs in found.items() for need in needs} == drawn
    assert len(drawn) > 20


def test_the_order_is_that_of_dvc_repro(small, tmp_path):
    fresh = servers.project(tmp_path / "project")
    assert line.executed(line.run(fresh, "dvc", "repro")) == list(graph.needs(small))
    assert list(graph.needs(small, ["quantize@b"])) == ["prepare", "prune", "quantize@b"]
    assert set(graph.needs(small, ["quantize"])) == {"prepare", "prune", "quantize@a", "quantize@b"}


def test_an_unknown_target_is_told_with_what_there_is(small):
    with pytest.raises(StageError, match=r"prun: no such stage; have: .*prune"):
        graph.needs(small, ["prun"])


def test_says_what_dvc_would_run_wherever_it_is_asked_from(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not any(graph.changed(small, name) for name in graph.needs(small))
    before = (small / "params.yaml").read_text()
    line.change(small, {"prune": {"ratio": 0.4}})
    assert [n for n in graph.needs(small) if graph.changed(small, n)] == ["prune"]
    (small / "params.yaml").write_text(before)
    (small / "build/a").unlink()
    assert [n for n in graph.needs(small) if graph.changed(small, n)] == ["quantize@a", "validate@a"]
    line.run(small, "dvc", "checkout")


def test_the_lock_file_does_not_depend_on_who_ended_first(small, tmp_path):
    text = (small / "dvc.lock").read_text()
    stages = yaml.safe_load(text)["stages"]
    servers.project(tmp_path / "other")
    for name in reversed(stages):
        graph.lock(tmp_path / "other", {name: stages[name]})
    assert (tmp_path / "other/dvc.lock").read_text() != text
    graph.settle(tmp_path / "other", [], graph.needs(small))
    assert (tmp_path / "other/dvc.lock").read_text() == text


def test_data_and_stages_of_subfolders_have_names_and_addresses(tmp_path):
    root = servers.project(tmp_path / "project")
    (root / "images").mkdir()
    (root / "images/one").write_text("1")
    line.run(root, "dvc", "add", "images")
    (root / "sub").mkdir()
    (root / "sub/dvc.yaml").write_text("stages: {count: {cmd: wc ../images/one > n, deps: [../images], outs: [n]}}\n")
    found = graph.needs(root, ["sub/dvc.yaml:count"])
    assert found == {"images.dvc": [], "sub/dvc.yaml:count": ["images.dvc"]}
    assert graph.changed(root, "sub/dvc.yaml:count") and not graph.changed(root, "images.dvc")
