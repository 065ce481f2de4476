"""The line end to end, as `dvc repro` runs it, on a shrunk copy of the project."""

import json
import socket

import pytest

from tests import line

pytestmark = pytest.mark.slow
TARGETS = ["openvino-fp16", "openvino-int8", "onnxruntime-int8"]


@pytest.fixture
def project(built_line):
    """The built project as it was: what a test before changed is taken back, from DVC's run cache."""
    root = built_line[0]
    line.run(root, "git", "checkout", "--", "params.yaml")
    line.run(root, "dvc", "repro")
    return root


def after(*heads: str, targets=TARGETS) -> set[str]:
    """Return the stages of some heads, each once or once per target."""
    per_target = {"quantize", "validate", "judge", "export"}
    return {f"{h}@{t}" for h in heads if h in per_target for t in targets} | {h for h in heads if h not in per_target}


def test_ends_with_every_variant_in_the_table(built_line):
    root, done = built_line
    assert set(line.executed(done)) == after(
        "check", "prepare", "check_data", "train", "distill", "prune", "convert", "baseline", "calibrate",
        "quantize", "validate", "judge", "export", "report", "register",
    )  # fmt: skip
    table = line.run(root, "python", "-m", "pipelines.summary", "build").stdout
    for variant in ["teacher-fp32", "student-fp32", "pruned-fp32", *TARGETS]:
        assert sum(row.startswith(f"{variant} ") for row in table.splitlines()) == 1
    for target in TARGETS:
        metrics = json.loads((root / f"build/metrics/{target}.json").read_text())
        assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
        assert metrics["p50_ms"] <= metrics["p95_ms"] <= metrics["p99_ms"]
        assert (root / f"build/bundles/{target}/evidence.json").is_file()


def test_a_second_run_does_nothing(project):
    assert line.executed(line.run(project, "dvc", "repro")) == []
    assert "up to date" in line.run(project, "dvc", "status").stdout


def test_another_clean_clone_gives_the_same_bytes(project, tmp_path):
    other = line.copy(tmp_path)
    line.run(other, "dvc", "repro")
    assert line.outputs(other) == line.outputs(project)
    assert len(line.outputs(project)) > 10


def test_a_gate_is_judged_anew_without_measuring_and_mlflow_may_be_down(project):
    target = "onnxruntime-int8"
    line.change(project, {"targets": {target: {"gates": {"compression": {"min": 1e6}}}}})
    with socket.socket() as listener:  # bound, not listening: nobody answers there
        listener.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = line.run(project, "dvc", "repro", MLFLOW_TRACKING_URI=down)
    assert set(line.executed(done)) == after("check", "judge", "export", "report", "register", targets=[target])
    assert "does not answer; the results are safe; `quantmill sync`" in done.stdout
    verdict = json.loads((project / f"build/verdicts/{target}.json").read_text())
    assert verdict["verdict"] == "failed" and "at least 1e+06 is wanted" in str(verdict["gates"])
    first, second = (line.run(project, "python", "-m", "registry.cli", "sync").stdout for _ in range(2))
    assert "1 of 6 variants were new" in first and "0 of 6 variants were new" in second


def test_settings_of_one_target_touch_that_target_only(project):
    target = "onnxruntime-int8"
    line.change(project, {"targets": {target: {"options": {"ranges": "percentile"}}}})
    stages = after("check", "quantize", "validate", "judge", "export", "report", "register", targets=[target])
    assert set(line.executed(line.run(project, "dvc", "repro"))) == stages


def test_a_target_is_searched_and_measured_on_another_machine(project, device, sshd):
    target = "onnxruntime-int8"
    said = sshd.log
    line.change(
        project, {"targets": {target: {"device": device, "search": "fast", "aim": {"agreement": {"min": 0.5}}}}}
    )
    done = line.run(project, "dvc", "repro")
    stages = after("check", "quantize", "validate", "judge", "export", "report", "register", targets=[target])
    assert set(line.executed(done)) == stages
    tried = json.loads((project / f"build/targets/{target}/quantize.json").read_text())["tried"]
    # To see that all is there; for each scheme; in the end beside FP32, beside the teacher, and alone.
    assert sshd.log.removeprefix(said).count("Accepted publickey") == 1 + len(tried) + 3
    evidence = json.loads((project / f"build/bundles/{target}/evidence.json").read_text())
    assert evidence["device"] == device and evidence["metrics"]["p50_ms"] > 0


def test_the_prune_ratio_leaves_train_and_distill_alone(project):
    line.change(project, {"prune": {"ratio": 0.5}})
    done = line.run(project, "dvc", "repro", "baseline", "calibrate")
    assert set(line.executed(done)) == after("check", "prune", "convert", "baseline", "calibrate")


def test_push_and_pull_rebuild_nothing(project, tmp_path):
    line.run(project, "dvc", "remote", "add", "--default", "--force", "--local", "there", str(tmp_path / "remote"))
    line.run(project, "dvc", "push")
    clone = tmp_path / "clone"
    line.run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    (clone / "dvc.lock").write_bytes((project / "dvc.lock").read_bytes())
    line.run(clone, "dvc", "remote", "add", "--default", "--local", "there", str(tmp_path / "remote"))
    line.run(clone, "dvc", "pull")
    assert line.executed(line.run(clone, "dvc", "repro")) == []


def test_broken_data_stop_the_line_with_check_count_and_examples(tmp_path):
    root = line.copy(tmp_path, {"contract": {"brightness": {"level": "error", "min": 0.3}}})
    done = line.run(root, "dvc", "repro", "train", check=False)
    assert done.returncode != 0
    assert line.executed(done) == ["check", "prepare", "check_data"]
    (said,) = [text for text in done.stderr.splitlines() if "the data breaks its contract" in text]
    assert "brightness: " in said and "of 1797 not 0.3 to 0.6, such as" in said and said.count(".png") == 3
    assert (root / ".quantmill/contract/docs/index.html").is_file()


def test_a_mistake_in_params_stops_it_before_any_stage(tmp_path):
    root = line.copy(tmp_path, {"prune": {"ration": 0.5}})
    done = line.run(root, "dvc", "repro", check=False)
    assert done.returncode != 0 and line.executed(done) == ["check"]
    assert "check: params.yaml: prune.ration: unknown key; did you mean 'ratio'?" in done.stderr
