"""Real servers for the tests: MLflow with and without the guard, each with a database and an artifact store."""

import base64
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.tiny import export

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A running MLflow server; `folder` holds its database `mlflow.db` and `artifacts`."""

    url: str
    folder: Path
    command: list[str]
    env: dict[str, str]
    process: subprocess.Popen | None = None

    def start(self):
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        wait(self.url + "/health", self.process, self.folder / "server.log")

    def stop(self):
        if self.process:
            os.killpg(self.process.pid, 15)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, 9)
                self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait(url, process, log, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if requests.get(url, timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-3000:]}")


def environment(**more) -> dict[str, str]:
    """The environment of a child: our sources first, quiet, and the tests' own keys."""
    quiet = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(bytes(32)).decode(),
    }
    return {**{k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}, **quiet, **more}


@pytest.fixture(scope="session")
def entry_point(tmp_path_factory) -> Path:
    """Metadata that announces our MLflow app, made from this pyproject.toml as an installer would."""
    folder = tmp_path_factory.mktemp("metadata")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    code = "import setuptools.build_meta as b; b.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    return folder


def mlflow_server(folder: Path, *arguments: str, template: Path | None = None, **env: str) -> Server:
    """Describe an MLflow server on a free port."""
    if template:
        shutil.copyfile(template, folder / "mlflow.db")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", *arguments]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    return Server(f"http://127.0.0.1:{port}", folder, command, environment(**env))


def _running(built, folder, *arguments, **env):
    server = mlflow_server(folder, *arguments, template=built / ".quantmill" / "mlflow.db", **env)
    server.start()
    return server


@pytest.fixture(scope="session")
def guarded(built, entry_point, tmp_path_factory):
    """An MLflow server with our app."""
    path = f"{ROOT}{os.pathsep}{entry_point}"
    server = _running(built, tmp_path_factory.mktemp("guarded"), "--app-name", "quantmill", PYTHONPATH=path)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def plain(built, tmp_path_factory):
    """An MLflow server as it comes."""
    server = _running(built, tmp_path_factory.mktemp("plain"))
    yield server
    server.stop()


@contextmanager
def command(project: Path, *words: str, ready: str = "", **env: str):
    """Run `quantmill WORDS` in a project until the block ends; `ready` is an address that answers when it is up."""
    log = project / f"{words[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "registry.cli", *words],
            cwd=project,
            env=environment(**env),
            stdout=file,
            stderr=file,
        )
    try:
        if ready:
            wait(ready, process, log)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def registered(built, tmp_path_factory):
    """A project whose registry, in a file, has versions 1 and 2, which passed, and 3, which failed."""
    from registry import register, variants

    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(built, root, copy_function=shutil.copyfile)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        for changes in ({}, {"metrics": {"accuracy": 0.97}}, {"verdict": "failed", "metrics": {"drop_fp32": 2.5}}):
            export(root, **changes)
            assert "1 of 1" in register.sync(variants.read(root / "build")[-1:])
    shutil.copytree(root / ".quantmill", root.parent / "snapshot")
    return root


@pytest.fixture
def versions(registered, monkeypatch):
    """The client of that registry, put back to its beginning; the current folder is the project."""
    from registry import tracking

    monkeypatch.chdir(registered)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    home, snapshot = registered / ".quantmill", registered.parent / "snapshot"
    for name in ("artifacts", "live"):
        shutil.rmtree(home / name, ignore_errors=True)
    shutil.copytree(snapshot / "artifacts", home / "artifacts")
    with sqlite3.connect(snapshot / "mlflow.db") as old, sqlite3.connect(home / "mlflow.db") as new:
        old.backup(new)
    return tracking.client()
