"""Runs one stage here: beside others where there is room, within its time, every line of it told."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.flow import Flow
from pipelines.stage import StageError

PROGRAM = Path(__file__).with_name("stage.py")
NOISE = (  # of DVC's output
    "ERROR: failed to reproduce",
    "To track the changes",
    "git add ",
    "To enable auto",
    "dvc config core.autostage",
    "Use `dvc push`",
)


class Room:
    """How many stages run here at the same time. One that measures time gets all the room."""

    def __init__(self, settings: Flow) -> None:
        self.size = min(settings.parallel, os.cpu_count() or 1)
        self.alone = settings.alone
        self.free = threading.Semaphore(self.size)
        self.door = threading.Lock()

    @contextmanager
    def take(self, stage: str) -> Iterator[None]:
        """Wait for room. First come, first served: a stage that needs all of it holds the door meanwhile."""
        wanted = self.size if stage.partition("@")[0] in self.alone else 1
        with self.door:
            for _ in range(wanted):
                self.free.acquire()
        try:
            yield
        finally:
            self.free.release(wanted)


def execute(tree: Path, stage: str, seconds: float, say: Callable[[str], None], more: Mapping[str, str]) -> None:
    """Run a stage of a work tree through DVC, with `more` in its environment; `say` gets each line of its output.

    Raises StageError with the stage's last line when it fails, or when it takes longer than `seconds`.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM), stage],
        cwd=tree,
        env={**os.environ, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(seconds, stop)
    timer.start()
    last: deque[str] = deque(maxlen=1)
    try:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]  # of a progress bar, the last state
            if line and not line.lstrip().startswith(NOISE):
                say(line)
                last.append(line)
        code = process.wait()
    finally:
        timer.cancel()
        _kill(process)
    if late.is_set():
        raise StageError(f"{stage}: stopped after {seconds:g} s; raise flow.timeout in params.yaml if it needs more")
    if code:
        raise StageError(f"{stage}: {last[0] if last else 'it said nothing'} (exit {code})")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
