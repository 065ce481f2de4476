"""What each subcommand of `quantmill` does: a function from its arguments to its answers."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.stage import StageError

Arguments = argparse.Namespace


@dataclass(frozen=True)
class Answer:
    """What a command says: `text` for people, `data` for programs (`--json`)."""

    text: str
    data: dict[str, Any]


def init(arguments: Arguments) -> Iterator[Answer]:
    """Make a project for somebody's data. Raises StageError when DIR holds something, or DATA cannot be read."""
    from pipelines import project

    made = project.make(arguments.folder, arguments.data, arguments.project, arguments.size, arguments.model)
    yield Answer(project.describe(arguments.folder, made), {"folder": str(arguments.folder), **made})


def check(arguments: Arguments) -> Iterator[Answer]:
    """Say which targets can run here, then every mistake. Raises StageError when a target cannot, or for mistakes."""
    from pipelines import check, machine

    targets = machine.targets(arguments.file)
    others = machine.others(targets)
    mistakes = check.check(arguments.file)
    lines = [machine.table(targets)]
    lines += [f"no target names {other['runtime']}: {other['install'] or 'installed here'}" for other in others]
    lacking = [f"targets.{t['target']}: cannot run here: {t['install']}" for t in targets if t["install"]]
    data = {"ok": not mistakes and not lacking, "mistakes": mistakes, "targets": targets, "other_runtimes": others}
    yield Answer("\n".join(lines), data)
    if mistakes or lacking:
        raise StageError("\n".join([*mistakes, *lacking]))


def report(arguments: Arguments) -> Iterator[Answer]:
    """Write the page. Raises StageError with `--strict` when a target did not pass."""
    from pipelines import report, summary, wording

    page = arguments.build / "report" / "index.html"
    report.main(arguments.build, page.parent)
    found = [(name, metrics, verdict) for name, metrics, verdict in summary.variants(arguments.build)]
    targets = [{"name": n, "verdict": v, "metrics": m} for n, m, v in found if v != "-"]
    headline = wording.headline([str(t["verdict"]) for t in targets])
    lines = [f"{n}: {v}. {wording.sentence(m)}" for n, m, v in found if v != "-"]
    yield Answer("\n".join([*lines, str(page)]), {"page": str(page), "headline": headline, "targets": targets})
    if arguments.open:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())
    if arguments.strict and any(t["verdict"] != "passed" for t in targets):
        raise StageError(headline)


def ui(arguments: Arguments) -> Iterator[Answer]:
    """Start MLflow with the guard, until it is stopped."""
    from registry import ui

    ui.run(arguments.host, arguments.port, arguments.auth, arguments.workers)
    yield from ()


def sync(arguments: Arguments) -> Iterator[Answer]:
    """Log into MLflow what it lacks. Raises UnansweredError when MLflow is away."""
    from registry import register, variants

    said = register.sync(variants.read(arguments.build))
    yield Answer(said, {"said": said})


def promote(arguments: Arguments) -> Iterator[Answer]:
    """Set `production` on a version and reconcile. Raises StageError when it is refused."""
    from registry import promote

    yield from _outcomes([promote.promote(arguments.model, arguments.version)])


def rollback(arguments: Arguments) -> Iterator[Answer]:
    """Set `production` on the version before and reconcile. Raises StageError when it is refused."""
    from registry import promote

    yield from _outcomes([promote.rollback(arguments.model)])


def reconcile(arguments: Arguments) -> Iterator[Answer]:
    """Reconcile once, or again and again."""
    from registry import reconcile

    if not arguments.every:
        yield from _outcomes(reconcile.reconcile(arguments.models))
        return
    while True:
        try:
            for outcome in reconcile.reconcile(arguments.models):
                if outcome.action not in ("unchanged", "nothing"):
                    yield _answer(outcome)
        except StageError as error:
            print(f"quantmill reconcile: {error}", file=sys.stderr, flush=True)
        time.sleep(arguments.every)


def serve(arguments: Arguments) -> Iterator[Answer]:
    """Serve the production version, until it is stopped."""
    from registry import serve

    serve.run(arguments.model, arguments.host, arguments.port, arguments.threads)
    yield from ()


def pull(arguments: Arguments) -> Iterator[Answer]:
    """Fetch and verify a bundle."""
    from registry import pull

    out = pull.pull(arguments.project, arguments.target, arguments.version, arguments.out)
    yield Answer(str(out), {"bundle": str(out)})


def trace(arguments: Arguments) -> Iterator[Answer]:
    """Say where a file comes from. Raises StageError when no signature vouches for it."""
    from registry import trace

    rows, holds = trace.trace(arguments.file)
    facts: dict[str, list[str]] = {}
    for name, value in rows:
        facts.setdefault(name, []).append(value)
    yield Answer("\n".join(f"{name:12} {value}" for name, value in rows), {"holds": holds, "facts": facts})
    if not holds:
        raise StageError(f"{arguments.file}: no signature vouches for it")


def webhook(arguments: Arguments) -> Iterator[Answer]:
    """Receive webhooks, until it is stopped."""
    import uvicorn

    from registry import promote, webhook

    secret = os.environ.get(webhook.SECRET, "")
    if len(secret) < 16:
        raise StageError(f"set {webhook.SECRET} to a secret of 16 characters or more")
    if arguments.url:
        webhook.announce(promote.connect(), arguments.url, secret)
    app = webhook.create_app(secret, _run(shlex.split(arguments.exec)) if arguments.exec else _reconcile_quietly)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")
    yield from ()


def grant(arguments: Arguments) -> Iterator[Answer]:
    """Give a user a role."""
    from registry import reconcile, ui

    password = os.environ.get("QUANTMILL_NEW_PASSWORD", "")
    said = ui.grant(arguments.user, arguments.role, password, reconcile.names())
    yield Answer(said, {"said": said})


def key(_: Arguments) -> Iterator[Answer]:
    """Print the public key, made if there is none."""
    from pipelines import signing

    path = signing.key_path()
    signing.make_key(path)
    public = signing.public_path(path).read_text().rstrip("\n")
    yield Answer(public, {"public_key": public})


def completion(arguments: Arguments) -> Iterator[Answer]:
    """Print the completion script of a shell."""
    import shtab

    from registry import cli

    parser = cli.parser()
    for command in parser._subparsers._group_actions[0].choices.values():  # type: ignore[union-attr]
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    text = shtab.complete(parser, shell=arguments.shell)
    yield Answer(text, {})


def _run(command: list[str]) -> Callable[[], None]:
    def work() -> None:
        done = subprocess.run(command)
        if done.returncode:
            print(f"quantmill webhook: {command[0]} ended with {done.returncode}", file=sys.stderr, flush=True)

    return work


def _reconcile_quietly() -> None:
    from registry import reconcile

    try:
        for outcome in reconcile.reconcile():
            print(_answer(outcome).text, flush=True)
    except StageError as error:
        print(f"quantmill webhook: {error}", file=sys.stderr, flush=True)


def _answer(outcome: Any) -> Answer:
    serves = f"version {outcome.version} serves" if outcome.version else "nothing serves"
    text = f"{outcome.model}: {outcome.action}; {serves}" + (f"; {outcome.reason}" if outcome.reason else "")
    return Answer(text, asdict(outcome))


def _outcomes(outcomes: Sequence[Any]) -> Iterator[Answer]:
    """Answer with each outcome. Raises StageError with the first refusal."""
    yield from map(_answer, outcomes)
    if refused := [o for o in outcomes if o.action == "refused"]:
        raise StageError(refused[0].reason)
