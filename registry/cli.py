"""Promotes, serves, pulls and traces what the line made."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pipelines.stage import StageError, quiet


def main() -> None:
    """Run one subcommand. Ends with 1 and one line on standard error when it cannot be done."""
    quiet()
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except StageError as error:
        print(f"quantmill {arguments.command}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parser() -> argparse.ArgumentParser:
    """Return the parser; each subcommand's function stands in `run`."""
    found = argparse.ArgumentParser(prog="quantmill", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("ui", help="start MLflow with the guard")
    _address(command, 5000)
    command.add_argument("--auth", action="store_true", help="ask for names and passwords (MLflow's basic auth)")
    command.add_argument("--workers", type=int, default=1)
    command.set_defaults(run=_ui)

    command = commands.add_parser("sync", help="log into MLflow what it lacks of the last build")
    command.add_argument("build", nargs="?", type=Path, default=Path("build"), help="the line's outputs (build)")
    command.set_defaults(run=_sync)

    command = commands.add_parser("promote", help="put a version into production")
    command.add_argument("model", help="PROJECT.TARGET")
    command.add_argument("version", help="a number or an alias, such as candidate")
    command.set_defaults(run=_promote)

    command = commands.add_parser("rollback", help="put back the version that served before")
    command.add_argument("model", help="PROJECT.TARGET")
    command.set_defaults(run=_rollback)

    command = commands.add_parser("reconcile", help="make what serves here follow the alias production")
    command.add_argument("models", nargs="*", metavar="MODEL", help="PROJECT.TARGET (all of the project)")
    command.add_argument("--every", type=float, metavar="SECONDS", help="again and again")
    command.set_defaults(run=_reconcile)

    command = commands.add_parser("serve", help="answer prediction requests with the production version")
    command.add_argument("model", help="PROJECT.TARGET")
    _address(command, 8000)
    command.add_argument("--threads", type=int, default=1, help="of the runtime")
    command.set_defaults(run=_serve)

    command = commands.add_parser("pull", help="fetch and verify a bundle")
    command.add_argument("project")
    command.add_argument("--target", required=True)
    command.add_argument("--version", default="production", help="a number or an alias (production)")
    command.add_argument("--out", type=Path, help="folder (PROJECT.TARGET)")
    command.set_defaults(run=_pull)

    command = commands.add_parser("trace", help="say where a file or a bundle comes from")
    command.add_argument("file", type=Path)
    command.set_defaults(run=_trace)

    command = commands.add_parser("webhook", help="receive MLflow's webhooks and reconcile at once")
    _address(command, 8001)
    command.add_argument("--url", help="tell MLflow to deliver to this address")
    command.add_argument("--exec", metavar="COMMAND", help="run this instead, e.g. 'prefect deployment run …'")
    command.set_defaults(run=_webhook)

    command = commands.add_parser("grant", help="say who may promote, and who may only look")
    command.add_argument("user")
    command.add_argument("role", choices=["look", "promote"])
    command.set_defaults(run=_grant)

    command = commands.add_parser("key", help="print the public key with which bundles are signed here")
    command.set_defaults(run=_key)
    return found


def _address(command: argparse.ArgumentParser, port: int) -> None:
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=port)


def _ui(arguments: argparse.Namespace) -> None:
    from registry import ui

    ui.run(arguments.host, arguments.port, arguments.auth, arguments.workers)


def _sync(arguments: argparse.Namespace) -> None:
    from registry import register, variants

    print(register.sync(variants.read(arguments.build)))


def _promote(arguments: argparse.Namespace) -> None:
    from registry import promote

    _report([promote.promote(arguments.model, arguments.version)])


def _rollback(arguments: argparse.Namespace) -> None:
    from registry import promote

    _report([promote.rollback(arguments.model)])


def _reconcile(arguments: argparse.Namespace) -> None:
    from registry import reconcile

    if not arguments.every:
        _report(reconcile.reconcile(arguments.models))
        return
    while True:
        try:
            for outcome in reconcile.reconcile(arguments.models):
                if outcome.action not in ("unchanged", "nothing"):
                    print(_line(outcome), flush=True)
        except StageError as error:
            print(f"quantmill reconcile: {error}", file=sys.stderr, flush=True)
        time.sleep(arguments.every)


def _serve(arguments: argparse.Namespace) -> None:
    from registry import serve

    serve.run(arguments.model, arguments.host, arguments.port, arguments.threads)


def _pull(arguments: argparse.Namespace) -> None:
    from registry import pull

    print(pull.pull(arguments.project, arguments.target, arguments.version, arguments.out))


def _trace(arguments: argparse.Namespace) -> None:
    from registry import trace

    rows, holds = trace.trace(arguments.file)
    for name, value in rows:
        print(f"{name:12} {value}")
    if not holds:
        raise StageError(f"{arguments.file}: no signature vouches for it")


def _webhook(arguments: argparse.Namespace) -> None:
    import uvicorn

    from registry import promote, webhook

    secret = os.environ.get(webhook.SECRET, "")
    if len(secret) < 16:
        raise StageError(f"set {webhook.SECRET} to a secret of 16 characters or more")
    if arguments.url:
        webhook.announce(promote.connect(), arguments.url, secret)
    app = webhook.create_app(secret, _run(shlex.split(arguments.exec)) if arguments.exec else _reconcile_quietly)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")


def _run(command: list[str]):  # type: ignore[no-untyped-def]
    def work() -> None:
        done = subprocess.run(command)
        if done.returncode:
            print(f"quantmill webhook: {command[0]} ended with {done.returncode}", file=sys.stderr, flush=True)

    return work


def _reconcile_quietly() -> None:
    from registry import reconcile

    try:
        _report(reconcile.reconcile(), strict=False)
    except StageError as error:
        print(f"quantmill webhook: {error}", file=sys.stderr, flush=True)


def _grant(arguments: argparse.Namespace) -> None:
    from registry import reconcile, ui

    password = os.environ.get("QUANTMILL_NEW_PASSWORD", "")
    print(ui.grant(arguments.user, arguments.role, password, reconcile.names()))


def _key(_: argparse.Namespace) -> None:
    from pipelines import signing

    key = signing.key_path()
    signing.make_key(key)
    print(signing.public_path(key).read_text(), end="")


def _line(outcome) -> str:  # type: ignore[no-untyped-def]
    serves = f"version {outcome.version} serves" if outcome.version else "nothing serves"
    return f"{outcome.model}: {outcome.action}; {serves}" + (f"; {outcome.reason}" if outcome.reason else "")


def _report(outcomes, strict: bool = True) -> None:  # type: ignore[no-untyped-def]
    for outcome in outcomes:
        print(_line(outcome), flush=True)
    refused = [o for o in outcomes if o.action == "refused"]
    if refused and strict:
        raise StageError(refused[0].reason)


if __name__ == "__main__":
    main()
