"""The first door: whatever the route and the body, an unearned promotion is refused, and an earned one is not."""

import json
import os
import sqlite3

import pytest
import requests

from registry import register, tracking, variants
from tests.tiny import MODEL, export

pytestmark = pytest.mark.slow


@pytest.fixture
def client(guarded, project, monkeypatch):
    """Versions that passed (good) and failed (bad) on the guarded server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded.url)
    build = project / "build"
    export(project, metrics={"accuracy": 0.9 + os.getpid() % 1000 / 1e5})
    assert "new to MLflow" in register.sync(variants.read(build)[-1:])
    export(project, verdict="failed", metrics={"drop_fp32": 2.5})
    assert "new to MLflow" in register.sync(variants.read(build)[-1:])
    found = tracking.client()
    versions = found.search_model_versions(f"name='{MODEL}'")
    found.good = max(int(v.version) for v in versions if v.tags["quantmill.verdict"] == "passed")
    found.bad = max(int(v.version) for v in versions if v.tags["quantmill.verdict"] == "failed")
    found.set_registered_model_alias(MODEL, "production", str(found.good))
    return found


def alias(client):
    return int(client.get_registered_model(MODEL).aliases["production"])


def test_an_earned_promotion_passes_and_an_unearned_is_told_why(client, guarded):
    body = {"name": MODEL, "alias": "production", "version": str(client.bad)}
    answer = requests.post(f"{guarded.url}/ajax-api/2.0/mlflow/registered-models/alias", json=body)
    assert answer.status_code == 403 and answer.json()["error_code"] == "PERMISSION_DENIED"
    assert "did not pass its gates" in answer.json()["message"] and "drop_fp32 is 2.5" in answer.json()["message"]
    assert alias(client) == client.good


PATHS = [
    *("/api/2.0/mlflow/registered-models/alias", "/ajax-api/2.0/mlflow/registered-models/alias"),
    *("/api/3.0/mlflow/registered-models/alias", "/ajax-api/3.0/mlflow/registered-models/alias"),
    *("/api/2.0/mlflow/registered-models/alias/", "/api/2.0//mlflow/registered-models/alias"),
    *("/API/2.0/mlflow/registered-models/alias", "/api/2.0/preview/mlflow/registered-models/alias"),
    *("/ajax-api/2.0/preview/mlflow/registered-models/alias", "/api/2.0/mlflow/registered-models/%61lias"),
    "/api/2.0/mlflow/../mlflow/registered-models/alias",
]


def test_no_path_leads_around(client, guarded):
    body = {"name": MODEL, "alias": "production", "version": str(client.bad)}
    for path in PATHS:
        for method in ("POST", "PUT", "PATCH", "GET"):
            for override in ({}, {"X-HTTP-Method-Override": "POST"}):
                request = requests.Request(method, guarded.url + path, json=body, headers=override).prepare()
                request.url = guarded.url + path  # requests would tidy it
                requests.Session().send(request, allow_redirects=True)
                assert alias(client) == client.good, (method, path)


def test_no_body_leads_around(client, guarded):
    url = f"{guarded.url}/api/2.0/mlflow/registered-models/alias"
    plain = {"name": MODEL, "alias": "production", "version": str(client.bad)}
    text = json.dumps(plain)
    bodies = [
        (text, "application/json; charset=utf-8"),
        (text, "text/plain"),
        (text, ""),
        (text, "application/x-www-form-urlencoded"),
        (json.dumps(text), "application/json"),
        (f'{{"alias": "candidate", {text[1:]}', "application/json"),
        (text.replace("production", "\\u0070roduction"), "application/json"),
        (text.replace("production", "Production"), "application/json"),
        (text.replace("production", " production "), "application/json"),
        (text.encode("utf-16"), "application/json"),
        (json.dumps({**plain, "version": client.bad}), "application/json"),
        (json.dumps({**plain, "version": f"0{client.bad}"}), "application/json"),
        (f"name={MODEL}&alias=production&version={client.bad}", "application/x-www-form-urlencoded"),
    ]
    for body, kind in bodies:
        answer = requests.post(url, data=body, headers={"Content-Type": kind} if kind else {})
        assert answer.status_code >= 400, (body, kind)
        assert alias(client) == client.good
        assert set(client.get_registered_model(MODEL).aliases) <= {"production", "candidate"}
    assert requests.post(url, params=plain).status_code >= 400 and alias(client) == client.good
    query = {"query": f'mutation {{ mlflowSetAlias(input: {{name: "{MODEL}", alias: "production"}}) {{ x }} }}'}
    requests.post(f"{guarded.url}/graphql", json=query)
    assert alias(client) == client.good


def test_stages_renames_and_copies_are_refused(client, guarded):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="stages promote nothing"):
        client.transition_model_version_stage(MODEL, str(client.bad), "production")
    client.transition_model_version_stage(MODEL, str(client.bad), "Staging")
    with pytest.raises(MlflowException, match="is in production"):
        client.rename_registered_model(MODEL, "tiny.other")
    copied = client.copy_model_version(f"models:/{MODEL}/{client.good}", "tiny.copied")
    assert copied.tags["quantmill.verdict"] == "passed"
    with pytest.raises(MlflowException, match="not registered by Quantmill"):
        client.set_registered_model_alias("tiny.copied", "production", copied.version)
    source = client.get_model_version(MODEL, str(client.good)).source
    model_id = source.removeprefix("models:/")
    other = client.create_model_version("tiny.copied", source, model_id=model_id, tags={"quantmill.verdict": "passed"})
    with pytest.raises(MlflowException, match=r"the bundle is of tiny\.onnxruntime-fp32, not of tiny\.copied"):
        client.set_registered_model_alias("tiny.copied", "production", other.version)
    with pytest.raises(MlflowException, match="cannot go into production"):
        client.set_registered_model_alias(MODEL, "production", "999")


def test_a_forged_tag_and_an_overwritten_artifact_are_seen(client, guarded):
    from mlflow.exceptions import MlflowException

    client.set_model_version_tag(MODEL, str(client.bad), "quantmill.verdict", "passed")
    with pytest.raises(MlflowException, match="did not pass its gates"):
        client.set_registered_model_alias(MODEL, "production", str(client.bad))
    client.set_model_version_tag(MODEL, str(client.bad), "quantmill.verdict", "failed")
    database = sqlite3.connect(guarded.folder / "mlflow.db")
    source = client.get_model_version(MODEL, str(client.bad)).source
    (location,) = database.execute(
        "select artifact_location from logged_models where model_id = ?", [source.removeprefix("models:/")]
    ).fetchone()
    target = location.replace("mlflow-artifacts:", f"{guarded.url}/api/2.0/mlflow-artifacts/artifacts")
    bundle = f"{target}/data/{MODEL.partition('.')[2]}"
    text = requests.get(f"{bundle}/evidence.json").text
    assert requests.put(f"{bundle}/evidence.json", data=text.replace('"failed"', '"passed"')).ok
    with pytest.raises(MlflowException, match="signature does not hold"):
        client.set_registered_model_alias(MODEL, "production", str(client.bad))
    assert alias(client) == client.good
