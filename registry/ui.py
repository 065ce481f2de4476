"""Starts the MLflow server of a project, with the guard, and says who may do what in it."""

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from pipelines.stage import StageError, quiet
from registry import tracking

ROLES = {"look": "READ", "promote": "EDIT"}


def run(host: str, port: int, auth: bool, workers: int) -> None:
    """Replace this process by the MLflow server of the database in `tracking.home()`."""
    home = tracking.home()
    tracking.client()  # makes the database, so that workers do not race for it
    quiet()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ.setdefault("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", _kept(home / "webhook.key", _fernet))
    if host == "127.0.0.1":  # hooks of a server for this machine go to this machine
        os.environ.setdefault("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
        os.environ.setdefault("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    if auth:
        os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(_auth(home))
        os.environ.setdefault("MLFLOW_FLASK_SERVER_SECRET_KEY", _kept(home / "session.key", secrets.token_hex))
        from mlflow.server.auth import bootstrap_admin_user

        bootstrap_admin_user()
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "quantmill", "--host", host, "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    print(f"MLflow: http://{host}:{port}", flush=True)
    os.execv(sys.executable, command)  # noqa: S606 - no shell: these words are ours


def grant(user: str, role: str, password: str, models: list[str]) -> str:
    """Make sure that a user exists and may `look` or `promote`; return one line. Needs an admin's credentials.

    Everybody with an account may look. To promote is EDIT on each registered model. Raises StageError.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    client: Any = get_app_client("basic-auth", tracking_uri=tracking.uri())
    try:
        try:
            client.get_user(user)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if not password:
                raise StageError(f"{user} is new: set QUANTMILL_NEW_PASSWORD to a first password") from None
            client.create_user(user, password)
        for model in models:
            client.grant_user_permission(user, "registered_model", model, ROLES[role])
    except MlflowException as error:
        raise StageError(
            f"MLflow at {tracking.uri()}: {' '.join(str(error).split())[:200]}; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to those of an admin"
        ) from None
    return f"{user} may {role}: {', '.join(models)}"


def _auth(home: Path) -> Path:
    if not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD") and not (home / "auth.db").exists():
        raise StageError("set MLFLOW_AUTH_ADMIN_PASSWORD to a password of 12 characters or more for the user 'admin'")
    path = home / "auth.ini"
    lines = ["[mlflow]", "default_permission = READ", f"database_uri = sqlite:///{home / 'auth.db'}"]
    lines += ["admin_username = admin", "auth_cache_ttl_seconds = 60"]
    lines += ["authorization_function = mlflow.server.auth:authenticate_request_basic_auth", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _fernet() -> str:
    from cryptography.fernet import Fernet

    return str(Fernet.generate_key().decode())


def _kept(path: Path, make: Any) -> str:
    """Return the secret in a file that only this user may read; it is made on first use."""
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(make())
    return path.read_text(encoding="utf-8")
