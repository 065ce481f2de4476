"""The same artifact in other places: what differs is seen, and a place that cannot run it says why."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import elsewhere, evaluation, runtimes
from pipelines.runtimes import Elsewhere
from tests.pipelines.test_runtimes import HERE, OPTIONS_OF, make, project  # noqa: F401

CPU = Path("/proc/cpuinfo")


@pytest.fixture
def test_set(project, monkeypatch):  # noqa: F811
    monkeypatch.chdir(project)
    whole = evaluation.read(project / "build/data", project / "build/onnx")
    return replace(whole, rows=whole.rows[:32])


@pytest.mark.parametrize("name", [n for n in HERE if hasattr(runtimes.load(n), "ELSEWHERE")])
def test_every_place_runs_the_artifact_and_says_nearly_the_same(project, tmp_path, test_set, name):  # noqa: F811
    runtime, *_ = make(project, name, "int8", tmp_path)
    file = tmp_path / runtime.FILES[0]
    said = test_set.outputs(runtime.load(file, 1))
    found = elsewhere.compare(runtime, file, test_set, said)
    assert list(found) == [place.name for place in runtime.ELSEWHERE]
    for row in found.values():
        assert row["images"] == test_set.measure.elsewhere
        assert 0 <= row["changed"] <= 0.5 and row["max_difference"] < 0.2, row
    assert elsewhere.most_changed(found) == max(row["changed"] for row in found.values())


@pytest.mark.skipif(not CPU.exists() or "avx512_vnni" not in CPU.read_text(), reason="this CPU has no AVX-512 VNNI")
def test_a_cap_on_the_instructions_changes_the_sums_of_int8(project, tmp_path, test_set):  # noqa: F811
    runtime, *_ = make(project, "openvino", "int8", tmp_path)
    file = tmp_path / runtime.FILES[0]
    said = test_set.outputs(runtime.load(file, 1))
    capped = elsewhere.compare(runtime, file, test_set, said)["OpenVINO, AVX-512 without VNNI"]
    assert capped["max_difference"] > 1e-6, "VNNI adds in 32 bits, what came before it in 16"


def test_what_differs_is_counted_and_a_place_that_fails_says_why(project, tmp_path, test_set, monkeypatch):  # noqa: F811
    runtime, *_ = make(project, "onnxruntime", "fp32", tmp_path)
    file = tmp_path / runtime.FILES[0]
    said = test_set.outputs(runtime.load(file, 1))
    other = [np.roll(output, 1, axis=-1) for output in said]
    monkeypatch.setattr(
        runtime,
        "ELSEWHERE",
        (Elsewhere("itself", "onnxruntime"), Elsewhere("another form", "onnxruntime", load="none")),
    )
    same, changed = (elsewhere.compare(runtime, file, test_set, answers) for answers in (said, other))
    assert same["itself"]["changed"] == 0 and same["itself"]["max_difference"] < 1e-5
    assert changed["itself"]["changed"] == 1.0 and changed["itself"]["max_difference"] > 0.1
    assert "has no attribute 'none'" in same["another form"]["not_run"]
    assert elsewhere.most_changed({"x": {"not_run": "why"}}) is None
