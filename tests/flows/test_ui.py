"""`make ui`: everything up on the loopback interface with one command, and down again."""

import os
import signal
import socket
import sys

import httpx
import psutil
import pytest

from tests import line
from tests.flows import servers

pytestmark = pytest.mark.slow


def test_it_brings_up_everything_and_stops_it_cleanly(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    line.copy(root)
    mlflow, prefect = servers.port(), servers.port()
    log = tmp_path / "ui.log"
    words = [sys.executable, "-m", "flows.ui", "--mlflow-port", str(mlflow), "--prefect-port", str(prefect)]
    process = servers.start(words, root, log, PYTHONPATH=str(root))
    family: list[psutil.Process] = []
    try:
        servers.until(lambda: "Ctrl-C stops all" in log.read_text(), "all is up", 200, process, log)
        family = psutil.Process(process.pid).children(recursive=True)
        listening = {c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert {a.port for a in listening} >= {mlflow, prefect}
        assert {a.ip for a in listening} == {"127.0.0.1"}
        api = f"http://127.0.0.1:{prefect}/api"
        deployed = httpx.post(f"{api}/deployments/filter", json={}).json()
        assert {d["name"] for d in deployed} == {"build", "nightly", "on-new-data", "reconcile", "stages"}
        workers = lambda: httpx.post(f"{api}/work_pools/quantmill/workers/filter", json={}).json()  # noqa: E731
        servers.until(workers, "the worker reports", 60)
        page = httpx.get(f"http://127.0.0.1:{prefect}/ui-settings").json()
        assert page["api_url"] == api
    finally:
        os.kill(process.pid, signal.SIGINT)
        code = process.wait(60)
    assert code == 0 and log.read_text().splitlines()[-1] == "stopped"
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not servers.answers(f"http://127.0.0.1:{mlflow}/health")


def test_a_taken_port_is_told_and_nothing_is_left(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = [sys.executable, "-m", "flows.ui", "--mlflow-port", str(port)]
        process = servers.start(words, tmp_path, tmp_path / "ui.log")
        assert process.wait(60) == 1
    said = (tmp_path / "ui.log").read_text()
    assert said == f"ui: 127.0.0.1:{port} is taken; stop what runs there, or choose another with --mlflow-port\n"
