"""Who may promote and who may only look; and what happens when MLflow restarts in the middle."""

import os
import subprocess
import sys
import threading
import time

import pytest
import requests

from registry import reconcile, register, state, tracking, variants
from tests.registry.conftest import ROOT, environment, free_port, mlflow_server, wait
from tests.tiny import MODEL, export

pytestmark = pytest.mark.slow


def test_look_or_promote(project, entry_point, monkeypatch):
    """`quantmill ui --auth` and two `quantmill grant` are the whole set-up."""
    build = project / "build"
    register.sync(variants.read(build)[-1:])
    export(project, verdict="failed", metrics={"drop_fp32": 2.5})
    register.sync(variants.read(build)[-1:])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    admin = {"MLFLOW_AUTH_ADMIN_PASSWORD": "a password for tests"}
    env = environment(**admin, PYTHONPATH=f"{ROOT}{os.pathsep}{entry_point}")
    for name in ("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        env.pop(name, None)
    log = project / "ui.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "registry.cli", "ui", "--auth", "--port", str(port)]
        server = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        wait(f"{url}/health", server, log)
        names = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": admin["MLFLOW_AUTH_ADMIN_PASSWORD"]}
        for user, role in (("olga", "promote"), ("vera", "look")):
            command = [sys.executable, "-m", "registry.cli", "grant", user, role]
            env = environment(MLFLOW_TRACKING_URI=url, QUANTMILL_NEW_PASSWORD=f"{user} has a password", **names)
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            assert done.returncode == 0 and f"{user} may {role}: {MODEL}" in done.stdout, done.stderr
        path = f"{url}/ajax-api/2.0/mlflow/registered-models/alias"

        def promote(version, user):
            body = {"name": MODEL, "alias": "production", "version": version}
            return requests.post(path, json=body, auth=user and (user, f"{user} has a password"))

        def alias():
            got = requests.get(
                f"{url}/ajax-api/2.0/mlflow/registered-models/get",
                params={"name": MODEL},
                auth=("vera", "vera has a password"),
            )
            assert got.ok, got.text
            aliases = got.json()["registered_model"].get("aliases", [])
            return next((a["version"] for a in aliases if a["alias"] == "production"), None)

        assert promote("1", None).status_code == 401
        assert promote("1", "vera").status_code == 403 and alias() is None
        assert promote("1", "olga").status_code == 200 and alias() == "1"
        refused = promote("2", "olga")
        assert refused.status_code == 403 and "did not pass its gates" in refused.json()["message"]
        assert alias() == "1"
        secrets = [project / ".quantmill" / name for name in ("webhook.key", "session.key")]
        assert all(s.stat().st_mode & 0o077 == 0 for s in secrets)
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


def test_mlflow_restarted_during_a_roll_out(built, project, tmp_path, monkeypatch):
    """The server goes down while a version is being checked, and comes back: the next runs finish the roll-out."""
    from pipelines.stage import StageError

    (tmp_path / "server").mkdir()
    server = mlflow_server(tmp_path / "server", template=built / ".quantmill" / "mlflow.db")
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        build = project / "build"
        register.sync(variants.read(build)[-1:])
        export(project, metrics={"accuracy": 0.97})
        register.sync(variants.read(build)[-1:])
        client = tracking.client()
        client.set_registered_model_alias(MODEL, "production", "1")
        reconcile.reconcile([MODEL])
        client.set_registered_model_alias(MODEL, "production", "2")
        real = reconcile.prove

        def prove_while_mlflow_goes(bundle):
            server.stop()
            real(bundle)

        with monkeypatch.context() as patch:
            patch.setattr(reconcile, "prove", prove_while_mlflow_goes)
            with pytest.raises(StageError, match="what serves goes on"):
                reconcile.reconcile([MODEL])
        assert state.read(MODEL).current.version in ("1", "2")
        threading.Thread(target=server.start).start()
        end = time.monotonic() + 90
        while True:
            try:
                outcome = reconcile.reconcile([MODEL])[0]
                break
            except StageError:
                assert time.monotonic() < end
                time.sleep(0.5)
        assert outcome.version == "2" and state.read(MODEL).confirmed
        assert client.get_model_version(MODEL, "2").tags["quantmill.status"] == "live"
        assert client.get_registered_model(MODEL).aliases["production"] == "2"
    finally:
        server.stop()
