"""Promotion and roll-back from the command line: the alias first, then the reconciler makes it true."""

import tempfile
from pathlib import Path
from typing import Any

from pipelines.stage import StageError, UnansweredError
from registry import bundles, evidence, state, tracking
from registry.reconcile import PRODUCTION, Outcome, reconcile


def check(client: Any, model: str, version: str) -> dict[str, Any]:
    """Return the evidence of a version of `model` that may be promoted. Raises StageError with the reason."""
    source = str(client.get_model_version(model, version).source)
    with tempfile.TemporaryDirectory() as scratch:
        bundles.fetch(client, source, Path(scratch) / "bundle")
        found = evidence.verify(Path(scratch) / "bundle", model)
    evidence.promotable(found)
    return found


def promote(model: str, version: str) -> Outcome:
    """Set `production` on a version (a number or an alias) that proves itself, and reconcile. Raises StageError."""
    client = connect()
    found = number(client, model, version)
    try:
        check(client, model, found)
    except StageError as error:
        raise StageError(f"{model} version {found}: {error}") from None
    client.set_registered_model_alias(model, PRODUCTION, found)
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
        raise UnansweredError(f"MLflow at {tracking.uri()} does not answer; set MLFLOW_TRACKING_URI, or start it")
    return tracking.client()


def number(client: Any, model: str, version: str) -> str:
    """Return the number of a version that is given as a number or an alias. Raises StageError when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if version.isdigit():
            return str(client.get_model_version(model, version).version)
        return str(client.get_model_version_by_alias(model, version).version)
    except MlflowException as error:
        raise StageError(f"{model} has no version {version}") from error
