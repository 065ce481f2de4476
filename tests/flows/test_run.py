"""One stage in its own process: heard, in time, and never left behind."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from flows import run
from pipelines.flow import Flow
from pipelines.stage import StageError
from tests import line
from tests.flows import servers


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    targets = {
        "talks": {"then": "printf '10%%\\r50%%\\r100%%\\n' && echo done >&2"},
        "fails": {"then": "echo the reason >&2 && false"},
        "sleeps": {"then": "echo asleep && sh -c 'sleep 300; true'"},
    }
    root = servers.project(tmp_path_factory.mktemp("small") / "project", targets)
    line.run(root, "dvc", "repro", "prune")
    return root


def sleepers(root) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == str(root) and p.pid != os.getpid()]


def test_every_line_is_told_and_of_a_progress_bar_the_last_state(small):
    said: list[str] = []
    run.execute(small, "quantize@talks", 60, said.append, {})
    assert {"100%", "done"} <= set(said) and not any(text.startswith("10%") for text in said)
    assert "Running stage 'quantize@talks':" in said and not any("git add" in text for text in said)
    assert (small / "build/talks").is_file()


def test_a_failure_is_told_with_the_stages_own_last_line(small):
    with pytest.raises(StageError, match=r"^quantize@fails: the reason \(exit \d+\)$"):
        run.execute(small, "quantize@fails", 60, lambda _: None, {})


def test_a_stage_that_takes_too_long_is_stopped_with_all_that_it_started(small):
    with pytest.raises(StageError, match=r"stopped after 3 s; raise flow.timeout in params.yaml"):
        run.execute(small, "quantize@sleeps", 3, lambda _: None, {})
    servers.until(lambda: not sleepers(small), "the stage's processes are gone", 10)


def test_a_stage_dies_with_the_flow_that_wanted_it(small):
    code = (
        f"from pathlib import Path; from flows import run; run.execute(Path({str(small)!r}), 'quantize@sleeps', 300, "
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", code + "lambda text: print(text, flush=True), {})"],
        cwd=line.ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert flow.stdout is not None
    for text in flow.stdout:
        if text.strip() == "asleep":
            break
    assert sleepers(small)
    flow.kill()
    flow.wait()
    servers.until(lambda: not sleepers(small), "the stage's processes are gone", 10)
    flow.stdout.close()


def test_what_measures_time_has_the_machine_for_itself(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    room = run.Room(Flow(parallel=3, alone=["validate"], retries=0, retry_delay=0, timeout=1, timeouts={}))
    here: list[str] = []
    seen: list[tuple[str, ...]] = []

    def work(name: str) -> None:
        with room.take(name):
            here.append(name)
            time.sleep(0.05)
            seen.append(tuple(here))
            here.remove(name)

    threads = [threading.Thread(target=work, args=[n]) for n in ["a", "b", "validate@x", "c", "validate@y", "d", "e"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(names) == 1 for names in seen if any(n.startswith("validate") for n in names))
    assert len(seen) == 7 and max(len(names) for names in seen) in (2, 3)


def test_timeouts_are_by_stage_without_the_target():
    flow = Flow(parallel=1, alone=[], retries=0, retry_delay=0, timeout=5, timeouts={"quantize": 7})
    assert (flow.seconds("quantize@a"), flow.seconds("train")) == (7, 5)
