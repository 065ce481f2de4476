"""Serving: over real HTTP, through real swaps."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests

from pipelines.data import Dataset
from registry import promote, reconcile, state, tracking
from tests.registry.conftest import environment, free_port, wait
from tests.tiny import MODEL, TARGET


@pytest.fixture
def project(versions):
    """The project's folder, with version 1 in production."""
    versions.set_registered_model_alias(MODEL, "production", "1")
    assert reconcile.reconcile([MODEL])[0].action == "live"
    return Path.cwd()


@pytest.fixture
def served(project):
    """The address of a running `quantmill serve`."""
    port = free_port()
    command = [sys.executable, "-m", "registry.cli", "serve", MODEL, "--port", str(port)]
    with (project / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    wait(f"{url}/ready", process, project / "serve.log")
    yield url
    process.terminate()
    process.wait(20)
    assert not (state.folder(MODEL) / "server.json").exists()


def image(project, row=0):
    dataset = Dataset(project / "build" / "data")
    return dataset.encoded(row), dataset.classes[dataset.labels[row]]


@pytest.mark.slow
def test_answers_images_arrays_and_mistakes(served, project):
    data, label = image(project)
    answer = requests.post(f"{served}/predict", data=data, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == "1" and answer.json()["predictions"][0]["label"] == label
    golden = project / "build" / "bundles" / TARGET / "golden"
    images, labels = np.load(golden / "images.npy"), np.load(golden / "labels.npy")
    body = (golden / "images.npy").read_bytes()
    answer = requests.post(f"{served}/predict", data=body, headers={"Content-Type": "application/x-npy"})
    found = [p["class"] for p in answer.json()["predictions"]]
    assert len(found) == len(images) and (np.array(found) == labels).mean() > 0.9
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    mistakes = [(b"not an image", "image/png"), (b"", "image/png"), (pickled.getvalue(), "application/x-npy")]
    mistakes += [(b"\x93NUMPY garbage", "application/x-npy")]
    for body, kind in mistakes:
        answer = requests.post(f"{served}/predict", data=body, headers={"Content-Type": kind})
        assert answer.status_code == 422 and answer.json()["detail"], (body, kind)
    metrics = requests.get(f"{served}/metrics").text
    assert 'quantmill_requests_total{status="200"} 2.0' in metrics
    assert 'quantmill_requests_total{status="422"} 4.0' in metrics and 'version="1"' in metrics
    assert "/predict" in requests.get(f"{served}/openapi.json").json()["paths"]
    page = requests.get(f"{served}/docs").text
    assert "POST /predict" in page and "http" not in page.replace("image/", "")


@pytest.mark.slow
def test_swaps_under_load_without_a_failed_request(served, project):
    data, label = image(project)
    stop, failed, versions = threading.Event(), [], set()
    count = [0]

    def load():
        session = requests.Session()
        while not stop.is_set():
            try:
                answer = session.post(f"{served}/predict", data=data, timeout=30)
                count[0] += 1
                versions.add(answer.json()["version"])
                if answer.status_code != 200 or answer.json()["predictions"][0]["label"] != label:
                    failed.append(answer.text)
            except requests.RequestException as error:
                failed.append(str(error))
            time.sleep(0.005)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    client = tracking.client()
    for turn in range(4):
        wanted = "2" if turn % 2 == 0 else "1"
        client.set_registered_model_alias(MODEL, "production", wanted)
        assert reconcile.reconcile([MODEL])[0].version == wanted
        assert requests.get(f"{served}/health").json()["version"] == wanted
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed and versions == {"1", "2"} and count[0] > 50


@pytest.mark.slow
def test_a_bundle_the_server_cannot_take_is_rolled_back(served, project):
    """The release is damaged after the reconciler's own check, as by a failing disk: the server must say no."""
    client = tracking.client()
    client.set_registered_model_alias(MODEL, "production", "2")
    real = reconcile.prove

    def prove_then_damage(bundle):
        real(bundle)
        (bundle / "labels.txt").write_text("damaged\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile, "prove", prove_then_damage)
        outcome = reconcile.reconcile([MODEL])[0]
    assert outcome.action == "refused" and "the server could not take it" in outcome.reason
    assert requests.get(f"{served}/health").json()["version"] == "1"
    assert client.get_registered_model(MODEL).aliases["production"] == 1


@pytest.mark.slow
def test_mlflow_runs_the_version_itself(project):
    import mlflow
    import pandas

    data, label = image(project)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@production")
    found = model.predict(pandas.DataFrame({"image": [data, data]}))
    assert list(found["label"]) == [label, label] and found["score"].between(0.5, 1).all()


@pytest.mark.slow
def test_mlflow_models_serve_answers(project):
    import base64

    data, label = image(project)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@production"]
    command += ["--port", str(port), "--env-manager", "local"]
    log = project / "models-serve.log"
    with log.open("wb") as file:
        env = environment(MLFLOW_TRACKING_URI=tracking.uri())
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        wait(f"http://127.0.0.1:{port}/ping", process, log)
        body = {"dataframe_records": [{"image": base64.b64encode(data).decode()}]}
        answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["label"] == label
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def test_command_line_promotes_pulls_traces_and_rolls_back(project, tmp_path, capsys, monkeypatch):
    from registry import cli

    def quantmill(*words):
        monkeypatch.setattr(sys, "argv", ["quantmill", *words])
        try:
            cli.main()
        except SystemExit as error:
            return error.code, capsys.readouterr()
        return 0, capsys.readouterr()

    assert "live; version 2 serves" in quantmill("promote", MODEL, "candidate")[1].out
    assert "live; version 1 serves" in quantmill("rollback", MODEL)[1].out
    assert "unchanged; version 1 serves" in quantmill("reconcile")[1].out
    assert "BEGIN PUBLIC KEY" in quantmill("key")[1].out
    out = tmp_path / "device"
    code, said = quantmill("pull", "tiny", "--target", TARGET, "--out", str(out))
    assert code == 0 and str(out) in said.out
    code, said = quantmill("trace", str(out / "model" / "model.onnx"))
    assert code == 0, said
    for word in (
        "signature    holds",
        "verdict      passed",
        "drop_fp32 is 0.1",
        "version 1 (production)",
        "commit",
        "run ",
    ):
        assert word in said.out
    loose = tmp_path / "found.onnx"
    loose.write_bytes((out / "model" / "model.onnx").read_bytes())
    code, said = quantmill("trace", str(loose))
    assert code == 1 and f"{MODEL} version 2" in said.out and "no signature vouches" in said.err
    (out / "labels.txt").write_text("forged\n")
    code, said = quantmill("trace", str(out))
    assert code == 1 and "DOES NOT HOLD" in said.out
    code, said = quantmill("pull", "tiny", "--target", TARGET, "--out", str(out))
    assert code == 0 and "forged" not in (out / "labels.txt").read_text()
    assert quantmill("pull", "tiny", "--target", TARGET, "--out", str(project))[0] == 1
    answer = subprocess.run(
        [sys.executable, out / "predict.py", out / "golden" / "images.npy"], capture_output=True, text=True
    )
    assert answer.returncode == 1 and "predict:" in answer.stderr
    assert json.loads((out / "evidence.json").read_text())["target"] == TARGET


def test_rollback_without_a_past_says_so(versions):
    from pipelines.stage import StageError

    with pytest.raises(StageError, match="nothing served here before"):
        promote.rollback(MODEL)
