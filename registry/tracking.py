"""Where MLflow is, and how we talk to it: short patience, no telemetry, no pickles."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.stage import quiet

SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def home() -> Path:
    """Return the folder of this project's local state: QUANTMILL_HOME, or `.quantmill` in the project."""
    return Path(os.environ.get("QUANTMILL_HOME", ".quantmill")).absolute()


def uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the URI of a sqlite file in `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def configure() -> None:
    """Set MLflow's settings for this process and its children; MLflow reads some of them when it is imported."""
    quiet()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def reachable(seconds: float = 3) -> bool:
    """Say whether the tracking server answers in time; a database in a file always does."""
    configure()
    import requests

    if not uri().startswith("http"):
        return True
    try:
        return bool(requests.get(f"{uri().rstrip('/')}/health", timeout=seconds).ok)
    except requests.RequestException:
        return False


def client() -> Any:
    """Return an MlflowClient of `uri()`; a database in a file is made if it is not there."""
    configure()
    import mlflow

    mlflow.set_tracking_uri(uri())
    mlflow.set_registry_uri(uri())
    if uri().startswith("http"):
        return mlflow.MlflowClient()
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(home() / "mlflow.lock"):  # two processes that create one sqlite file at once break it for good
        found = mlflow.MlflowClient()
        found.search_experiments(max_results=1)
    return found


def experiment(client: Any, name: str) -> str:
    """Return the id of an experiment, made if it is not there; local artifacts lie in `home()`."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    local = None if uri().startswith("http") else (home() / "artifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=local))
    except MlflowException:  # somebody else made it meanwhile
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


@contextmanager
def alone(name: str, timeout: float = -1) -> Iterator[None]:
    """Hold a lock of this project, across processes. Raises filelock.Timeout after `timeout` seconds (-1: never)."""
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(home() / f"{name}.lock", timeout=timeout):
        yield
