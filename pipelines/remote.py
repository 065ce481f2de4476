"""Runs the harness on another machine over SSH: Python, numpy and the runtime are all it needs there.

`ssh://user@host:port/path`: `path` is a folder there, made where it is missing; what is sent lies in it while it runs.
A virtual environment `.venv` in it is used, else `python3`. Keys, known hosts and jump hosts are those of the system's
ssh, which asks for nothing.
"""

import inspect
import io
import json
import re
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines import harness, runtimes
from pipelines.stage import StageError

UNREACHABLE = 255  # exit status of ssh itself
SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
# Unpacks the archive on standard input, runs the program in it, and leaves nothing behind.
UNPACK = """
import subprocess, sys, tarfile, tempfile
with tempfile.TemporaryDirectory(dir=".") as folder:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        archive.extractall(folder)
    with open(folder + "/request.json") as request:
        done = subprocess.run([sys.executable, "-B", "program.py"], cwd=folder, stdin=request)
sys.exit(done.returncode)
"""


def ask(device: str, runtime: str, artifacts: dict[str, Path], request: dict[str, Any]) -> dict[str, Any]:
    """Return what the harness on `device` answers to a request; `artifacts` are sent there.

    Raises StageError with one line when the machine cannot be reached, or lacks something.
    """
    module = runtimes.load(runtime)
    sent = {"program.py": program(module).encode()}
    places = {}
    for name, artifact in artifacts.items():
        up = len(Path(module.FILES[0]).parts)
        root = Path(*artifact.parts[:-up])
        whole = root / module.FILES[0] == artifact
        for file in module.FILES if whole else (artifact.name,):
            sent[f"{name}/{file}"] = ((root if whole else artifact.parent) / file).read_bytes()
        places[name] = f"{name}/{module.FILES[0] if whole else artifact.name}"
    sent["request.json"] = json.dumps({**request, "artifacts": places}).encode()
    answer: dict[str, Any] = json.loads(_run(device, UNPACK, _archive(sent)).splitlines()[-1])
    return answer


def lacking(device: str, runtime: str) -> str | None:
    """Return why `device` cannot measure for a runtime; None: it can."""
    imports = ["numpy", *runtimes.imports(runtimes.load(runtime))]
    try:
        _run(device, "; ".join(f"import {name}" for name in imports), b"")
    except StageError as error:
        return str(error)
    return None


def program(module: Any) -> str:
    """Return the harness with the `load` of a runtime as one file."""
    source, _, _ = inspect.getsource(harness).partition('if __name__ == "__main__":')
    return f"{source}{inspect.getsource(module.load)}\n\nmain(load)\n"


def _run(device: str, code: str, given: bytes) -> str:
    """Run Python code on a machine; return its standard output."""
    address = urlsplit(device)
    folder = shlex.quote(unquote(address.path))
    command = f"mkdir -p {folder} && cd {folder} && {{ [ -x .venv/bin/python ] && PATH=$PWD/.venv/bin:$PATH; "
    command += f"exec python3 -c {shlex.quote(code)}; }}"
    try:
        words = [*SSH, *(("-p", str(address.port)) if address.port else ())]
    except ValueError as error:
        raise StageError(f"{device}: {error}") from None
    words += [*(("-l", address.username) if address.username else ()), "--", str(address.hostname), command]
    try:
        done = subprocess.run(words, input=given, capture_output=True, check=False)
    except FileNotFoundError:
        raise StageError(f"{device}: there is no ssh on this machine; install OpenSSH's client") from None
    if not done.returncode:
        return done.stdout.decode()
    said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1].strip()
    if done.returncode == UNREACHABLE:
        raise StageError(f"{device}: cannot be reached: {said}")
    if found := re.search(r"No module named '([\w.]+)'", said):
        where = f"into {unquote(address.path).rstrip('/')}/.venv, or for its python3"
        raise StageError(f"{device}: has no {found[1]}; install it there, {where}")
    raise StageError(f"{device}: fails there: {said}")


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
