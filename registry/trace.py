"""From a file on a device back to the version, run, gates, params, data and commit it came from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import card, signing
from pipelines.files import sha256_file
from pipelines.stage import StageError, UnansweredError
from registry import evidence, tracking


def trace(path: Path) -> tuple[list[tuple[str, str]], bool]:
    """Return what is known of a file or a bundle, as (name, value), and whether a signature vouches for it."""
    if not path.exists():
        raise UnansweredError(f"{path}: no such file")
    bundle = next((p for p in (path, *path.resolve().parents) if (p / "SHA256SUMS").is_file()), None)
    rows: list[tuple[str, str]] = [("file", str(path))]
    if path.is_file():
        rows.append(("sha256", sha256_file(path)))
    holds = False
    if bundle:
        try:
            found = evidence.verify(bundle)
            holds = True
            rows.append(("signature", f"holds, by {signing.verify(bundle, signing.trusted_keys())}"))
            rows += _evidence(found)
        except StageError as error:
            rows.append(("signature", f"DOES NOT HOLD: {error}"))
    else:
        rows.append(("signature", "none: the file lies in no bundle"))
    rows += _mlflow(evidence.bundle_hash(bundle) if bundle else None, path)
    return rows, holds


def _evidence(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", f"{found['project']}.{found['target']}"
    yield "artifact", found["artifact"]["sha256"]
    yield "verdict", found["verdict"]["verdict"]
    for line in card.gates(found["verdict"]):
        yield "gate", line
    yield "data", found["data"]["sha256"]
    yield "calibration", found["calibration"]
    yield "params", found["params_sha256"]
    yield "code", found["code"]["sha256"]


def _mlflow(bundle: str | None, path: Path) -> Iterator[tuple[str, str]]:
    """Find the runs of a bundle, or of a file by its hash; MLflow's word is a hint, and its absence no error."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if not tracking.reachable():
        yield "mlflow", f"{tracking.uri()} does not answer"
        return
    wanted = (
        f"tags.`quantmill.bundle` = '{bundle}'" if bundle else f"tags.`quantmill.files` LIKE '%{sha256_file(path)}%'"
    )
    try:
        client = tracking.client()
        ids = [e.experiment_id for e in client.search_experiments()]
        runs = list(client.search_runs(ids, wanted))
        if not runs:
            yield "mlflow", f"{tracking.uri()} does not know it"
        for run in runs:
            tags = run.data.tags
            yield "run", f"{run.info.run_id} ({run.info.run_name}, {tags.get('quantmill.stage', '')})"
            yield "commit", tags.get("quantmill.git_commit", "not recorded")
            yield "data hash", tags.get("quantmill.data_hash", "")
            for version in client.search_model_versions(f"run_id='{run.info.run_id}'"):
                aliases = client.get_model_version(version.name, str(version.version)).aliases
                named = f" ({', '.join(aliases)})" if aliases else ""
                yield "version", f"{version.name} version {version.version}{named}"
    except (MlflowException, RequestException) as error:
        yield "mlflow", f"{tracking.uri()} failed: {' '.join(str(error).split())[:200]}"
