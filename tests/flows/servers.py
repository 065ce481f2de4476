"""Servers and small projects for the tests of the flows: everything is real, on the loopback interface."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests import line

PROGRAMS = Path(sys.executable).parent
QUIET = {"PREFECT_LOGGING_TO_API_ENABLED": "false"}
DVC_YAML = """\
stages:
  prepare:
    cmd: mkdir -p build && echo data > build/data
    outs: [build/data]
  prune:
    cmd: sed -n 's/.*ratio/ratio/p' params.yaml > build/pruned
    deps: [build/data]
    params: [prune]
    outs: [build/pruned]
  quantize:
    foreach: ${targets}
    do:
      cmd: sleep ${item.seconds} && ${item.then} && echo ${key} | cat - build/pruned > "build/${key}"
      deps: [build/pruned]
      params: ["targets.${key}"]
      outs: ["build/${key}"]
  validate:
    foreach: ${targets}
    do:
      cmd: wc -c "build/${key}" > "build/${key}.m"
      deps: ["build/${key}"]
      outs: ["build/${key}.m"]
  register:
    cmd: cat build/*.m > build/register
    deps: ${all}
    outs: [build/register]
"""
FLOW = {"parallel": 2, "alone": ["validate"], "retries": 0, "retry_delay": 0, "timeout": 120, "timeouts": {}}


def project(root: Path, targets: dict | None = None, **flow) -> Path:
    """Make a git and DVC project whose stages are lines of shell; a target says how long it takes, and `then` what."""
    targets = targets or {"a": {}, "b": {}}
    value = {
        "project": "small",
        "task": "classification",
        "prune": {"ratio": 0.3},
        "targets": {k: {"seconds": 0, "then": "true", **v} for k, v in targets.items()},
        "flow": {**FLOW, **flow},
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(json.dumps(value, indent=2))
    (root / "dvc.yaml").write_text(DVC_YAML.replace("${all}", json.dumps([f"build/{k}.m" for k in targets])))
    (root / ".gitignore").write_text("/build\n/.quantmill/\n")
    (root / ".dvcignore").write_text(".quantmill\n")
    line.run(root, "git", "init", "-q", "-b", "main")
    line.run(root, "dvc", "init", "-q")
    commit(root, "The project")
    return root


def commit(root: Path, message: str) -> None:
    line.run(root, "git", "add", "-A")
    line.run(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


def environment(**more: str) -> dict[str, str]:
    """Return what a program of ours finds in its environment: this interpreter's programs, our packages."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")}
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(line.ROOT), **more}


def build(root: Path, *words: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flows.build` in a project."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.build", *words], cwd=root, env=environment(**more), capture_output=True, text=True
    )
    if check and done.returncode:
        raise AssertionError(f"build {words}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done


def start(words: list[str], cwd: Path, log: Path, **more: str) -> subprocess.Popen:
    with log.open("ab") as out:
        return subprocess.Popen(
            words, cwd=cwd, env=environment(**more), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def stop(process: subprocess.Popen, sign: int = signal.SIGTERM, seconds: float = 20) -> None:
    """Stop a process and all of its group."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, sign)
        process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(true, what: str, seconds: float = 120, process: subprocess.Popen | None = None, log: Path | None = None):
    """Wait until `true()` gives something, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            break
        if found := true():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s\n{log.read_text()[-4000:] if log and log.exists() else ''}")


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


class Prefect:
    """A Prefect server; its database outlives it."""

    def __init__(self, folder: Path, database: str = "", **more: str) -> None:
        self.folder, self.port = folder, port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.log = folder / "prefect.log"
        self.more = {
            **QUIET,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "2",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
            **more,
        }
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        words = [str(PROGRAMS / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = start(words, self.folder, self.log, **self.more)
        until(lambda: answers(f"{self.api}/health"), "Prefect", process=self.process, log=self.log)

    def stop(self, sign: int = signal.SIGTERM) -> None:
        if self.process:
            stop(self.process, sign)
            self.process = None

    @property
    def client(self) -> dict[str, str]:
        """Return the environment of its clients and workers."""
        return {**self.more, "PREFECT_API_URL": self.api}

    def ask(self, path: str, **body):
        answer = httpx.post(f"{self.api}{path}", json=body, timeout=20)
        answer.raise_for_status()
        return answer.json()

    def runs(self, flow: str, deployment: str = "") -> list[dict]:
        """Return the runs of a flow, the oldest first."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        if deployment:
            wanted["deployments"] = {"name": {"any_": [deployment]}}
        return self.ask("/flow_runs/filter", **wanted)


@contextmanager
def postgres(folder: Path):
    """Yield the port of a PostgreSQL cluster that lives in `folder`, which its user must be able to reach."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    if user:
        import shutil

        shutil.chown(folder, "postgres")
    call = {"cwd": folder, "check": True, "capture_output": True, **user}
    subprocess.run(
        [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"], **call
    )
    found = port()
    log = (folder.parent / f"{folder.name}.log").open("ab")
    process = subprocess.Popen(
        [programs / "postgres", "-D", folder / "data", "-p", str(found), "-c", "listen_addresses=127.0.0.1",
         "-c", "unix_socket_directories=", "-c", "fsync=off"],
        cwd=folder, stdout=log, stderr=log, start_new_session=True, **user,
    )  # fmt: skip
    try:
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(found)]
        until(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL", process=process)
        for name in ("prefect", "mlflow"):
            subprocess.run(
                [programs / "createdb", "-h", "127.0.0.1", "-p", str(found), "-U", "postgres", name], check=True
            )
        yield found
    finally:
        stop(process, signal.SIGINT)
