"""The MLflow server's first door: `mlflow server --app-name quantmill` refuses a promotion that is not earned.

The check stands in the registry store, below every route, body and API version through which a request can come.
With MLFLOW_AUTH_CONFIG_PATH set, MLflow's basic auth stands before it.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pipelines.stage import StageError
from registry import bundles, evidence, tracking

PRODUCTION = "production"


def create_app() -> Any:
    """Return MLflow's application with the guard in its registry store; the entry point of `--app-name`."""
    tracking.configure()
    from mlflow.server import app, handlers

    guard(handlers._get_model_registry_store())
    if os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
        from mlflow.server import auth

        return auth.create_app(app)
    if os.environ.get("_MLFLOW_SGI_NAME") in (None, "uvicorn"):
        from mlflow.server.fastapi_app import create_fastapi_app

        return create_fastapi_app(app)
    return app


def guard(store: Any) -> None:
    """Make a registry store refuse `production` on a version without valid evidence, and every way around it."""
    set_alias, transition, rename = (
        store.set_registered_model_alias,
        store.transition_model_version_stage,
        store.rename_registered_model,
    )

    def set_registered_model_alias(name: str, alias: str, version: str) -> None:
        if str(alias).strip().casefold() == PRODUCTION:
            if alias != PRODUCTION:
                raise _refusal(f"the alias is written '{PRODUCTION}'")
            check(store, name, str(version))
        set_alias(name, alias, version)

    def transition_model_version_stage(name: str, version: str, stage: str, archive_existing_versions: bool) -> Any:
        if str(stage).strip().casefold() == PRODUCTION:
            raise _refusal("stages promote nothing here; set the alias production on the version")
        return transition(name, version, stage, archive_existing_versions)

    def rename_registered_model(name: str, new_name: str) -> Any:
        if PRODUCTION in {alias.casefold() for alias in store.get_registered_model(name).aliases}:
            raise _refusal(f"{name} is in production; a bundle serves under the name that was signed")
        return rename(name, new_name)

    store.set_registered_model_alias = set_registered_model_alias
    store.transition_model_version_stage = transition_model_version_stage
    store.rename_registered_model = rename_registered_model


def check(store: Any, name: str, version: str) -> None:
    """Raise MlflowException, which the dialog shows, unless the version's bundle proves that it may be promoted."""
    from mlflow.exceptions import MlflowException

    try:
        source = str(store.get_model_version(name, version).source)
        with tempfile.TemporaryDirectory() as scratch:
            bundle = Path(scratch) / "bundle"
            repository, root = _artifacts(bundles.model_id(source))
            bundles.copy(repository, root, bundle)
            evidence.promotable(evidence.verify(bundle, name))
    except StageError as error:
        raise _refusal(f"version {version} cannot go into production: {error}") from None
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise
        raise _refusal(f"version {version} cannot go into production: {error.message}") from None


def _artifacts(model_id: str) -> tuple[Any, str]:
    """Return the repository in which a logged model's artifacts lie for this server, and their folder in it."""
    from mlflow.server import handlers
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = str(handlers._get_tracking_store().get_logged_model(model_id).artifact_location)
    if proxied := re.fullmatch(r"mlflow-artifacts:(?://[^/]*)?/+(.*)", location):
        return handlers._get_artifact_repo_mlflow_artifacts(), proxied[1]
    return get_artifact_repository(location), ""


def _refusal(message: str) -> Any:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    return MlflowException(f"Quantmill: {message}", error_code=PERMISSION_DENIED)
