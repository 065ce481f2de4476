"""Checks, reports, promotes, serves, pulls and traces what the line made.

exit status: 0 done, or the answer is yes; 1 the answer is no (a mistake in params.yaml, a gate, a signature, a refused
promotion); 2 wrong usage; 3 it cannot be answered now (a server is away, nothing is built); 130 interrupted.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from pipelines.stage import StageError, quiet

SHELLS = ("bash", "zsh", "fish")


def main() -> None:
    """Run one subcommand; see the exit status above. An error is one line on standard error."""
    quiet()
    arguments = parser().parse_args()
    try:
        # The commands are imported only now, so that `--help` answers at once.
        command = getattr(importlib.import_module("registry.commands"), arguments.command.replace("-", "_"))
        for answer in command(arguments):
            print(json.dumps(answer.data, ensure_ascii=False) if arguments.json else answer.text, flush=True)
    except StageError as error:
        print(f"quantmill {arguments.command}: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parser() -> argparse.ArgumentParser:
    """Return the parser; each subcommand is a function of `registry.commands`."""
    found = argparse.ArgumentParser(
        prog="quantmill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, answers: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(json=False)
        if answers:
            command.add_argument("--json", action="store_true", help="answer with one JSON object a line")
        return command

    command = add("init", "make a project for your own data, which runs at once")
    command.add_argument("folder", type=Path, metavar="DIR", help="the new project's folder; it is made, or empty")
    command.add_argument("--from", dest="data", type=Path, required=True, metavar="DATA", help="folder of your data")
    command.add_argument("--model", type=Path, metavar="FILE", help="a finished ONNX model, to quantize as it is")
    command.add_argument("--project", help="name in the registry (that of DIR)")
    command.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the model's input")

    command = add("check", "say whether params.yaml is right, and which targets can run on this machine")
    command.add_argument("file", nargs="?", type=Path, default=Path("params.yaml"), help="(params.yaml)")

    command = add("report", "write the page of the last build, and say where it is")
    command.add_argument("build", nargs="?", type=Path, default=Path("build"), help="the line's outputs (build)")
    command.add_argument("--open", action="store_true", help="show it in the browser")
    command.add_argument("--strict", action="store_true", help="end with 1 unless every target passed its gates")

    command = add("ui", "start MLflow with the guard", answers=False)
    _address(command, 5000)
    command.add_argument("--auth", action="store_true", help="ask for names and passwords (MLflow's basic auth)")
    command.add_argument("--workers", type=int, default=1)

    command = add("sync", "log into MLflow what it lacks of the last build")
    command.add_argument("build", nargs="?", type=Path, default=Path("build"), help="the line's outputs (build)")

    command = add("promote", "put a version into production")
    command.add_argument("model", help="PROJECT.TARGET")
    command.add_argument("version", help="a number or an alias, such as candidate")

    command = add("rollback", "put back the version that served before")
    command.add_argument("model", help="PROJECT.TARGET")

    command = add("reconcile", "make what serves here follow the alias production")
    command.add_argument("models", nargs="*", metavar="MODEL", help="PROJECT.TARGET (all of the project)")
    command.add_argument("--every", type=float, metavar="SECONDS", help="again and again")

    command = add("serve", "answer prediction requests with the production version", answers=False)
    command.add_argument("model", help="PROJECT.TARGET")
    _address(command, 8000)
    command.add_argument("--threads", type=int, default=1, help="of the runtime")

    command = add("pull", "fetch and verify a bundle")
    command.add_argument("project")
    command.add_argument("--target", required=True)
    command.add_argument("--version", default="production", help="a number or an alias (production)")
    command.add_argument("--out", type=Path, help="folder (PROJECT.TARGET)")

    command = add("trace", "say where a file or a bundle comes from")
    command.add_argument("file", type=Path)

    command = add("webhook", "receive MLflow's webhooks and reconcile at once", answers=False)
    _address(command, 8001)
    command.add_argument("--url", help="tell MLflow to deliver to this address")
    command.add_argument("--exec", metavar="COMMAND", help="run this instead, e.g. 'prefect deployment run …'")

    command = add("grant", "say who may promote, and who may only look")
    command.add_argument("user")
    command.add_argument("role", choices=["look", "promote"])

    add("key", "print the public key with which bundles are signed here")

    command = add("completion", "print what a shell needs to complete this command", answers=False)
    command.add_argument("shell", choices=SHELLS)
    return found


def _address(command: argparse.ArgumentParser, port: int) -> None:
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=port)


if __name__ == "__main__":
    main()
