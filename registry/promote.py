"""Promotion and roll-back from the command line: the alias first, then the reconciler makes it true."""

import tempfile
from pathlib import Path
from typing import Any

from pipelines.stage import StageError
from registry import bundles, evidence, state, tracking
from registry.reconcile import PRODUCTION, Outcome, reconcile


def check(client: Any, model: str, version: str) -> dict[str, Any]:
    """Return the evidence of a version of `model` that may be promoted. Raises StageError with the reason."""
    from mlflow.exceptions import MlflowException

    try:
        source = str(client.get_model_version(model, version).source)
    except MlflowException as error:
        raise StageError(f"{model} has no version {version}") from error
    with tempfile.TemporaryDirectory() as scratch:
        bundles.fetch(client, source, Path(scratch) / "bundle")
        found = evidence.verify(Path(scratch) / "bundle", model)
    evidence.promotable(found)
    return found


def promote(model: str, version: str) -> Outcome:
    """Set `production` on a version (a number or an alias) that proves itself, and reconcile. Raises StageError."""
    client = connect()
    number = version if version.isdigit() else _by_alias(client, model, version)
    try:
        check(client, model, number)
    except StageError as error:
        raise StageError(f"{model} version {number}: {error}") from None
    client.set_registered_model_alias(model, PRODUCTION, number)
    return reconcile([model])[0]


def rollback(model: str) -> Outcome:
    """Set `production` on the version that served before the current one, and reconcile. Raises StageError."""
    client = connect()
    live = state.read(model)
    if live is None or not live.history:
        raise StageError(f"{model}: nothing served here before; promote a version instead")
    client.set_registered_model_alias(model, PRODUCTION, live.history[-1].version)
    return reconcile([model])[0]


def connect() -> Any:
    """Return an MlflowClient. Raises StageError when the server does not answer."""
    if not tracking.reachable():
        raise StageError(f"MLflow at {tracking.uri()} does not answer; set MLFLOW_TRACKING_URI, or start it")
    return tracking.client()


def _by_alias(client: Any, model: str, alias: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        raise StageError(f"{model} has no version {alias!r}") from error
