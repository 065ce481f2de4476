"""Brings up MLflow, Prefect, the deployments and a worker on the loopback interface, and stops them together.

python -m flows.ui [--mlflow-port 5000] [--prefect-port 4200]
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.stage import StageError

HOST = "127.0.0.1"
LOGS = Path(".quantmill/logs")
POOLS = ("quantmill", "stages")
READY_SECONDS = 180
STOP_SECONDS = 15


def main() -> None:
    """Start everything and wait. Ends with 0 after Ctrl-C or TERM, with 1 and one line when something fails."""
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=__doc__.splitlines()[0])
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    started: dict[str, subprocess.Popen[bytes]] = {}
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOGS.parent / "ui.lock", timeout=0):
            try:
                up(started, options.mlflow_port, options.prefect_port)
                watch(started)
            finally:
                down(started)
    except Timeout:
        raise SystemExit("ui: it is up already in this folder; stop it there with Ctrl-C") from None
    except StageError as error:
        raise SystemExit(f"ui: {error}") from None
    except KeyboardInterrupt:
        print("stopped", flush=True)


def up(started: dict[str, subprocess.Popen[bytes]], mlflow_port: int, prefect_port: int) -> None:
    """Start the servers side by side, then the deployments and the worker. Raises StageError."""
    mlflow, prefect = f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{prefect_port}"
    environment = {
        "MLFLOW_TRACKING_URI": mlflow,
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_HOME": str(Path(".quantmill/prefect").absolute()),
        "PREFECT_SERVER_UI_API_URL": f"{prefect}/api",
        "QUANTMILL_ROOT": str(Path.cwd()),
    }
    _free(mlflow_port, "--mlflow-port")
    _free(prefect_port, "--prefect-port")
    # MLflow's server opens the database that `dvc repro` without a server writes.
    without = {k: v for k, v in environment.items() if k != "MLFLOW_TRACKING_URI"}
    words = ["-m", "registry.cli", "ui", "--host", HOST, "--port", str(mlflow_port)]
    started["mlflow"] = _start("mlflow", words, without)
    words = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)]
    started["prefect"] = _start("prefect", words, environment)
    _ready(started, "prefect", f"{prefect}/api/health")
    os.environ.update(environment)
    deploy()
    words = ["-m", "prefect", "worker", "start", "--pool", POOLS[0], "--limit", "2", "--install-policy", "never"]
    started["worker"] = _start("worker", words, environment)
    _ready(started, "mlflow", f"{mlflow}/health")
    print(
        f"MLflow   {mlflow}\nPrefect  {prefect}\n\nIn another terminal, so that runs show there:\n"
        f"  export MLFLOW_TRACKING_URI={mlflow} PREFECT_API_URL={prefect}/api\n\n"
        f"Logs are in {LOGS}. Ctrl-C stops all.",
        flush=True,
    )


def deploy() -> None:
    """Make the work pools and the deployments of `prefect.yaml` on the server of PREFECT_API_URL. Raises StageError."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        for name in POOLS:
            template = ProcessWorker.get_default_base_job_template()
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
            except ObjectAlreadyExists:
                continue
    log = LOGS / "deploy.log"
    with log.open("wb") as out:
        words = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        if subprocess.run(words, stdout=out, stderr=out, check=False).returncode:
            raise StageError(f"prefect.yaml: could not be deployed: {_last(log)}; see {log}")


def watch(started: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Return never. Raises StageError when one of the processes ends."""
    while True:
        for name, process in started.items():
            _alive(name, process)
        time.sleep(0.5)


def down(started: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Stop the processes, the last first, with all that they started."""
    import psutil

    for process in reversed(list(started.values())):
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        _, left = psutil.wait_procs(family, timeout=1)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _start(name: str, words: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")}
    with (LOGS / f"{name}.log").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *words],
            env={**kept, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops them in order
        )


def _free(port: int, option: str) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError:
            raise StageError(f"{HOST}:{port} is taken; stop what runs there, or choose another with {option}") from None


def _ready(started: Mapping[str, subprocess.Popen[bytes]], name: str, url: str) -> None:
    import httpx

    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        _alive(name, started[name])
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise StageError(f"{name} does not answer at {url} within {READY_SECONDS} s; see {LOGS / name}.log")


def _alive(name: str, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        log = LOGS / f"{name}.log"
        raise StageError(f"{name} ended (exit {process.returncode}): {_last(log)}; see {log}")


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
