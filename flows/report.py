"""Tells what a run did: artifacts in the Prefect UI, and one line."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines import params, summary, tasks
from pipelines.stage import StageError


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: `what` is `ran`, `unchanged`, `failed` or `not run` (it needs one that failed)."""

    stage: str
    what: str
    seconds: float
    reason: str = ""


def line(outcomes: Sequence[Outcome], experiment: str = "") -> str:
    """Return one line about a run."""
    count = Counter(o.what for o in outcomes)
    if set(count) <= {"unchanged"}:
        return f"nothing to do: all {len(outcomes)} stages are up to date"
    text = ", ".join(f"{count[w]} {w}" for w in ("ran", "unchanged", "failed", "not run") if count[w])
    if experiment:
        text += f"; kept as the DVC experiment '{experiment}' (`dvc exp apply {experiment}` brings it here)"
    return "; ".join([text, *(o.reason for o in outcomes if o.reason)])


def publish(tree: Path, outcomes: Sequence[Outcome], experiment: str) -> None:
    """Leave a Markdown and two table artifacts of a run in Prefect. A server that is away costs a line in the log."""
    import httpx
    from prefect import get_run_logger
    from prefect.artifacts import create_markdown_artifact, create_table_artifact
    from prefect.exceptions import PrefectException

    rows = variants(tree)
    stages = [{"stage": o.stage, "what": o.what, "seconds": round(o.seconds, 1), "reason": o.reason} for o in outcomes]
    try:
        create_table_artifact(stages, key="stages", description=line(outcomes, experiment))
        create_table_artifact(rows, key="variants", description="Every variant, its measurements and its verdict.")
        create_markdown_artifact(markdown(tree, outcomes, rows, experiment), key="summary")
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("no summary in Prefect: %s", error)


def variants(tree: Path) -> list[dict[str, Any]]:
    """Return a row for each variant that a work tree holds: its task metric, size, speed and verdict."""
    found = summary.variants(tree / "build")
    if not found:
        return []
    metric = tasks.load(params.value("task", tree / params.PARAMS)).METRIC
    keys = (metric, "drop_fp32", "size_bytes", "compression", "p50_ms", "speedup")
    return [
        {"variant": name, **{k: _short(metrics.get(k)) for k in keys if k in metrics}, "verdict": verdict}
        for name, metrics, verdict in found
    ]


def markdown(tree: Path, outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]], experiment: str) -> str:
    """Return the summary of a run as Markdown, with links to MLflow when it is a server."""
    text = [f"# {line(outcomes, experiment)}", ""]
    if rows:
        heads = max((list(row) for row in rows), key=len)
        text += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        text += [f"| {' | '.join(str(row.get(h, '')) for h in heads)} |" for row in rows]
    server = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if rows and server.startswith("http"):
        project = params.value("project", tree / params.PARAMS)
        targets = params.value("targets", tree / params.PARAMS)
        links = [f"- [{project}.{t}]({server}/#/models/{quote(f'{project}.{t}')})" for t in targets]
        text += ["", "## In MLflow", *links]
    text += ["", "## Stages", "", "| stage | what | seconds |", "| --- | --- | --- |"]
    for o in outcomes:
        text.append(f"| {o.stage} | {o.what}{f': {_cell(o.reason)}' if o.reason else ''} | {o.seconds:.1f} |")
    return "\n".join(text)


def answering() -> None:
    """Raise StageError when PREFECT_API_URL names a server that does not answer."""
    import httpx
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise StageError(
            f"PREFECT_API_URL: {url} does not answer ({error}); start it (`make ui`), or unset it to run without one"
        ) from None


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
