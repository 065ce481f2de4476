"""Deployments as `prefect.yaml` declares them: a schedule fires, new data are built, what serves is reconciled."""

import os
import subprocess

import pytest
import yaml

from tests import line
from tests.flows import servers

pytestmark = pytest.mark.slow
PREFECT = str(servers.PROGRAMS / "prefect")


@pytest.fixture(scope="module")
def deployed(prefect, tmp_path_factory):
    """A small project with imported data whose worker follows the deployments of `prefect.yaml`."""
    root = servers.project(tmp_path_factory.mktemp("scheduled") / "project")
    source = root.parent / "source.txt"
    source.write_text("one\n")
    line.run(root, "dvc", "import-url", str(source), "images")
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(
        text.replace(
            "cmd: mkdir -p build && echo data > build/data\n", "cmd: cat images > build/data\n    deps: [images]\n"
        )
    )
    (root / "build").mkdir()
    line.run(root, "dvc", "repro")
    servers.commit(root, "Built")
    declared = yaml.safe_load((line.ROOT / "prefect.yaml").read_text())
    nightly = next(d for d in declared["deployments"] if d["name"] == "nightly")
    assert nightly["schedules"] == [{"cron": "0 3 * * *", "timezone": "UTC"}]
    nightly["schedules"] = [{"interval": 10}]
    for other in declared["deployments"]:
        if other is not nightly:
            other["schedules"] = []
    (root.parent / "prefect.yaml").write_text(yaml.safe_dump(declared))
    for pool in ("quantmill", "stages"):
        run(root, prefect, "work-pool", "create", "--type", "process", "--overwrite", pool)
    run(root, prefect, "deploy", "--all", "--prefect-file", str(root.parent / "prefect.yaml"))
    worker = servers.start(
        [PREFECT, "worker", "start", "--pool", "quantmill", "--install-policy", "never"],
        root.parent, root.parent / "worker.log", QUANTMILL_ROOT=str(root), **prefect.client,
    )  # fmt: skip
    yield root, source
    servers.stop(worker)
    for name in ("nightly",):
        run(root, prefect, "deployment", "delete", f"build/{name}")


def run(root, prefect, *words):
    done = subprocess.run(
        [PREFECT, "--no-prompt", *words], cwd=root.parent, env=servers.environment(**prefect.client),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_flow_is_deployed_and_the_two_pools_part_builds_from_stages(deployed, prefect):
    found = {d["name"]: d for d in prefect.ask("/deployments/filter")}
    assert set(found) == {"build", "nightly", "on-new-data", "reconcile", "stages"}
    assert {n for n, d in found.items() if d["work_pool_name"] == "stages"} == {"stages"}


def test_the_schedule_fires_twice_and_both_runs_complete_in_a_checkout_of_their_own(deployed, prefect):
    root, _ = deployed

    def two():
        runs = [r for r in prefect.runs("build", "nightly") if r["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]
        return len(runs) >= 2 and runs

    log = root.parent / "worker.log"
    runs = servers.until(two, "two scheduled runs", 150, log=log)[:2]
    assert [r["state"]["type"] for r in runs] == ["COMPLETED"] * 2, [r["state"]["message"] for r in runs]
    assert all(r["auto_scheduled"] for r in runs)
    assert "nothing to do" in runs[-1]["state"]["message"]
    assert (root / ".quantmill/trees/nightly/build/register").is_file()
    assert line.run(root, "git", "status", "--porcelain").stdout == ""


def test_new_data_at_the_source_are_built_and_old_ones_are_not(deployed, prefect):
    root, source = deployed
    assert "Completed" in run(root, prefect, "deployment", "run", "refresh/on-new-data", "--watch")
    assert prefect.runs("refresh")[-1]["state"]["message"] == "the data are those of the last build"
    source.write_text("one\ntwo\n")
    run(root, prefect, "deployment", "run", "refresh/on-new-data", "--watch")
    message = prefect.runs("refresh")[-1]["state"]["message"]
    assert "ran" in message and "kept as the DVC experiment" in message
    assert "two" in (root / ".quantmill/trees/data/build/data").read_text()
    run(root, prefect, "deployment", "run", "refresh/on-new-data", "--watch")
    assert prefect.runs("refresh")[-1]["state"]["message"] == "the data are those of the last build"
    assert os.listdir(root / "build") and (root / "build/data").read_text() == "one\n"


def test_the_reconciler_runs_in_the_project_and_says_what_it_found(deployed, prefect):
    root, _ = deployed
    run(root, prefect, "deployment", "run", "reconcile/reconcile", "--watch")
    state = prefect.runs("reconcile")[-1]["state"]
    assert (state["type"], state["message"]) == ("COMPLETED", "nothing to do")
