"""Latency of `quantmill serve` under a steady load, without and with 20 swaps: `python -m benchmarks.swaps BUNDLE`.

Prints failed requests and p50/p99 in ms of both phases. The second bundle is a signed copy of the first.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import requests

from pipelines import signing
from pipelines.files import sha256_file, tree
from pipelines.stage import quiet
from registry import evidence, state
from registry.state import Release, State

SWAPS, RATE, CLIENTS, SECONDS = 20, 100, 4, 15.0  # requests per second in all; seconds of the phase without swaps


def main(bundle: Path) -> None:
    """Serve two bundles in turn under load and print what the requests saw."""
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["QUANTMILL_HOME"] = scratch
        found = evidence.verify(bundle)
        model = f"{found['project']}.{found['target']}"
        releases = [place(model, bundle, number) for number in ("1", "2")]
        state.write(model, State(releases[0], True, ()))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "registry.cli", "serve", model, "--port", str(port)]
        server = subprocess.Popen(command)
        url = f"http://127.0.0.1:{port}"
        try:
            until(url, releases[0])
            image = io.BytesIO()
            np.save(image, np.load(bundle / "golden" / "images.npy")[:1])
            body = image.getvalue()
            report("without swaps", *load(url, body, lambda: time.sleep(SECONDS)))
            report(f"with {SWAPS} swaps", *load(url, body, lambda: swap(url, model, releases)))
        finally:
            server.terminate()
            server.wait()


def place(model: str, bundle: Path, number: str) -> Release:
    """Copy the bundle among those that may serve; each number gives another hash."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "bundle"
        shutil.copytree(bundle, copy)
        with (copy / "MODEL_CARD.md").open("a") as file:
            file.write(f"{number}\n")
        files = [p for p in tree(copy) if p.name not in ("SHA256SUMS", signing.SIGNATURE)]
        text = "".join(f"{sha256_file(p)}  {p.relative_to(copy).as_posix()}\n" for p in files)
        (copy / "SHA256SUMS").write_text(text)
        signing.sign(copy)
        digest = evidence.bundle_hash(copy)
        shutil.copytree(copy, state.bundle_folder(model, digest))
    return Release(number, f"models:/m-{number}", digest)


def swap(url: str, model: str, releases: list[Release]) -> None:
    """Put the two releases in place in turn, each as soon as the one before serves."""
    for turn in range(SWAPS):
        release = releases[(turn + 1) % 2]
        state.write(model, State(release, True, ()))
        until(url, release)


def until(url: str, release: Release) -> None:
    """Wait until a release serves."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if requests.get(f"{url}/health", timeout=5).json()["bundle"] == release.bundle:
                return
        except requests.RequestException:
            pass
        time.sleep(0.02)
    raise SystemExit("the server did not take the release within 60 s")


def load(url: str, body: bytes, work) -> tuple[list[float], int, float]:  # type: ignore[no-untyped-def]
    """Send requests at a steady rate until `work` returns; return the times in ms, failures and seconds."""
    stop, times, failed = threading.Event(), [], []

    def client(number: int) -> None:
        session = requests.Session()
        due = time.perf_counter() + number / RATE
        while not stop.is_set():
            time.sleep(max(0.0, due - time.perf_counter()))
            start = time.perf_counter()
            try:
                answer = session.post(f"{url}/predict", data=body, headers={"Content-Type": "application/x-npy"})
                if answer.status_code != 200:
                    failed.append(answer.text)
            except requests.RequestException as error:
                failed.append(str(error))
            times.append((time.perf_counter() - start) * 1000)
            due += CLIENTS / RATE

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    work()
    stop.set()
    for thread in threads:
        thread.join()
    return times, len(failed), time.monotonic() - start


def report(name: str, times: list[float], failed: int, seconds: float) -> None:
    """Print one line."""
    p50, p99 = np.percentile(times, [50, 99])
    print(f"{name}: {len(times)} requests in {seconds:.0f} s, {failed} failed, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
