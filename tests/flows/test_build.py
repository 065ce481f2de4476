"""The flow `build`: what DVC would have done, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from flows import graph
from pipelines.files import sha256_tree
from tests import line
from tests.flows import servers

pytestmark = pytest.mark.slow


def artifacts(prefect, run: str) -> dict[str, dict]:
    found = prefect.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    return {a["key"]: a for a in found}


def flow(root, prefect, *words):
    """Start a build and leave it running; its output goes to `build.log`."""
    return servers.start([sys.executable, "-m", "flows.build", *words], root, root / "build.log", **prefect.client)


def said(root) -> str:
    return (root / "build.log").read_text() if (root / "build.log").exists() else ""


def test_without_a_server_it_leaves_what_dvc_repro_leaves_and_then_finds_nothing_to_do(tmp_path):
    by_dvc, by_flow = (servers.project(tmp_path / n / "project") for n in ("dvc", "flow"))
    line.run(by_dvc, "dvc", "repro")
    first = servers.build(by_flow)
    assert first.stdout.splitlines()[-1] == "7 ran"
    assert (by_flow / "dvc.lock").read_text() == (by_dvc / "dvc.lock").read_text()
    assert sha256_tree(by_flow / "build") == sha256_tree(by_dvc / "build")
    assert "up to date" in line.run(by_flow, "dvc", "status").stdout
    line.change(by_flow, {"prune": {"ratio": 0.4}})
    line.run(by_flow, "dvc", "repro")
    assert servers.build(by_flow).stdout.splitlines()[-1] == "nothing to do: all 7 stages are up to date"


def test_a_server_that_does_not_answer_is_told_at_once(tmp_path):
    root = servers.project(tmp_path / "project")
    done = servers.build(root, check=False, PREFECT_API_URL=f"http://127.0.0.1:{servers.port()}/api")
    assert done.returncode == 1 and done.stderr.startswith("build: PREFECT_API_URL: ")
    assert "or unset it" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_failed_target_stops_no_other_and_the_run_says_what_became_of_each(prefect, tmp_path):
    root = servers.project(tmp_path / "project", {"good": {}, "bad": {"then": "echo too wide >&2; false"}})
    done = servers.build(root, check=False, MLFLOW_TRACKING_URI="http://mlflow.test", **prefect.client)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("build: 4 ran, 1 failed, 2 not run; quantize@bad: too wide (exit")
    assert (root / "build/good.m").is_file() and not (root / "build/bad.m").exists()
    run = prefect.runs("build")[-1]
    assert run["state"]["type"] == "FAILED" and "quantize@bad: too wide" in run["state"]["message"]
    found = artifacts(prefect, run["id"])
    assert {"stages", "variants", "summary"} == set(found)
    for what in (
        "| quantize@bad | failed: quantize@bad: too wide",
        "| validate@bad | not run",
        "| validate@good | ran",
    ):
        assert what in found["summary"]["data"]


def test_a_stage_that_fails_once_is_tried_again(prefect, tmp_path):
    root = servers.project(
        tmp_path / "project", {"flaky": {"then": "(test -f .flag || (touch .flag; false))"}}, retries=1
    )
    assert servers.build(root, **prefect.client).stdout.splitlines()[-1] == "5 ran"


def test_overrides_become_an_experiment_and_the_users_file_stays(prefect, tmp_path):
    root = servers.project(tmp_path / "project")
    line.run(root, "dvc", "repro")
    servers.commit(root, "Built")
    done = servers.build(root, "--set", "prune.ratio=0.5", **prefect.client)
    message = done.stdout.splitlines()[-1]
    assert message.startswith("6 ran, 1 unchanged; kept as the DVC experiment '")
    name = message.split("'")[1]
    assert line.run(root, "git", "status", "--porcelain").stdout == ""
    assert "0.3" in (root / "build/pruned").read_text()
    line.run(root, "dvc", "exp", "apply", name)
    assert "0.5" in (root / "build/pruned").read_text()


def test_a_flow_killed_in_the_middle_of_a_stage_leaves_nothing_wrong(prefect, tmp_path):
    root = servers.project(tmp_path / "project", {"a": {"seconds": 5}, "b": {}})
    process = flow(root, prefect)
    servers.until(lambda: "Running stage 'quantize@a'" in said(root), "the stage runs", process=process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    here = str(root)
    servers.until(lambda: not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == here], "nothing is left", 10)
    assert not (root / "build/a").exists()
    message = servers.build(root, **prefect.client).stdout.splitlines()[-1]
    assert "ran" in message and "failed" not in message
    fresh = servers.project(tmp_path / "fresh" / "project", {"a": {"seconds": 5}, "b": {}})
    line.run(fresh, "dvc", "repro")
    assert graph.locked(root, graph.needs(root)) == graph.locked(fresh, graph.needs(fresh))
    assert sha256_tree(root / "build") == sha256_tree(fresh / "build")


def test_the_api_is_restarted_while_a_flow_runs_and_a_second_flow_finds_the_tree_busy(prefect, tmp_path):
    root = servers.project(tmp_path / "project", {"a": {"seconds": 12}, "b": {}})
    process = flow(root, prefect)
    servers.until(lambda: "Running stage 'quantize@a'" in said(root), "the stage runs", process=process)
    second = servers.build(root, check=False, **prefect.client)
    assert second.returncode == 1 and "this work tree is busy: flow run '" in second.stderr.splitlines()[-1]
    waiting = threading.Thread(target=lambda: results.append(servers.build(root, "--wait", "200", **prefect.client)))
    results: list[subprocess.CompletedProcess[str]] = []
    prefect.stop(signal.SIGKILL)
    prefect.start()
    waiting.start()
    assert process.wait(120) == 0, said(root)
    assert "7 ran" in said(root)
    waiting.join(200)
    assert results[0].stdout.splitlines()[-1].startswith("nothing to do")
    states = [run["state"]["type"] for run in prefect.runs("build")[-3:]]
    assert sorted(states) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert "up to date" in line.run(root, "dvc", "status").stdout
