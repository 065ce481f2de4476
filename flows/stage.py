"""Runs one stage of the current folder's work tree through DVC, in a process that dies with the flow that wants it."""

import os
import signal
import sys
import threading


def main() -> int:
    """Run the stage named on the command line; return DVC's exit status.

    Standard input is a pipe that the flow holds open. When it closes, because the flow ended or was killed, this
    process and all that the stage started are killed: no stage goes on behind the back of the next flow.
    """
    leash = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_follow, args=[leash], daemon=True).start()
    from dvc.cli import main as dvc

    return int(dvc(["--wait-for-lock", "repro", "--single-item", sys.argv[1]]))


def _follow(leash: int) -> None:
    while os.read(leash, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
