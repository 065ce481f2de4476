"""Attacks on what serves. None gets served, the alias goes back, and the version says why."""

import base64
import hashlib
import hmac
import json
import pickle
import shutil
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from fastapi.testclient import TestClient

from pipelines import signing
from pipelines.files import sha256_file, tree
from pipelines.stage import StageError
from registry import bundles, evidence, pull, reconcile, state, tracking, webhook
from tests.tiny import MODEL, TARGET


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def world(versions):
    """Version 1 serves; version 2 passed and 3 failed. `store` gives the bundle of a version in the artifact store."""
    client = versions
    client.set_registered_model_alias(MODEL, "production", "1")
    assert reconcile.reconcile([MODEL])[0].action == "live"

    def store(version):
        source = client.get_model_version(MODEL, str(version)).source
        location = client.get_logged_model(source.removeprefix("models:/")).artifact_location
        return Path(unquote(urlparse(location).path)) / "data" / TARGET

    def promote(version):
        client.set_registered_model_alias(MODEL, "production", str(version))
        return reconcile.reconcile([MODEL])[0]

    def refused(outcome, reason):
        assert outcome.action == "refused" and reason in outcome.reason, outcome
        assert state.read(MODEL).current.version == "1" and state.read(MODEL).confirmed
        assert client.get_registered_model(MODEL).aliases["production"] == 1

    return SimpleNamespace(client=client, store=store, promote=promote, refused=refused)


def sums(bundle):
    """Write SHA256SUMS anew, as somebody would who knows the format."""
    files = [p for p in tree(bundle) if p.name not in ("SHA256SUMS", signing.SIGNATURE)]
    text = "".join(f"{sha256_file(p)}  {p.relative_to(bundle).as_posix()}\n" for p in files)
    (bundle / "SHA256SUMS").write_text(text)


def test_artifact_overwritten_after_registration(world):
    (world.store(2) / "model" / "model.onnx").write_bytes((world.store(1) / "model" / "model.onnx").read_bytes() + b"x")
    world.refused(world.promote(2), "signature does not hold")
    sums(world.store(2))
    world.refused(world.promote(2), "signature does not hold")


def test_tag_edited_to_say_it_passed(world):
    for key in ("quantmill.verdict", "quantmill.status"):
        world.client.set_model_version_tag(MODEL, "3", key, "passed")
    world.refused(world.promote(3), "did not pass its gates")


def test_evidence_edited_or_copied_from_another_version(world):
    path = world.store(3) / "evidence.json"
    mine = path.read_text()
    path.write_text(mine.replace('"failed"', '"passed"'))
    sums(world.store(3))
    world.refused(world.promote(3), "signature does not hold")
    for name in ("evidence.json", "SHA256SUMS", signing.SIGNATURE):
        shutil.copyfile(world.store(2) / name, world.store(3) / name)
    world.refused(world.promote(3), "signature does not hold")


def test_signed_evidence_of_another_artifact(world):
    """Somebody who may sign packs the good evidence around another artifact."""
    bundle = world.store(2)
    (bundle / "model" / "model.onnx").write_bytes(b"another")
    sums(bundle)
    signing.sign(bundle)
    world.refused(world.promote(2), "another artifact")


def test_signed_with_another_key(world, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("QUANTMILL_SIGNING_KEY", str(tmp_path / "mallory.pem"))
        signing.sign(world.store(2))
    world.refused(world.promote(2), "a key that is not trusted here")
    public = signing.public_path(tmp_path / "mallory.pem")
    monkeypatch.setenv("QUANTMILL_TRUSTED_KEYS", str(public))
    assert evidence.verify(world.store(2))


def test_signature_taken_away(world):
    (world.store(2) / signing.SIGNATURE).unlink()
    world.refused(world.promote(2), "no signature")


def test_bundle_of_another_target(world):
    """A signed bundle of a weaker model under the name of this one."""
    bundle = world.store(2)
    found = json.loads((bundle / "evidence.json").read_text())
    (bundle / "evidence.json").write_text(json.dumps({**found, "target": "other"}))
    sums(bundle)
    signing.sign(bundle)
    world.refused(world.promote(2), "the bundle is of tiny.other")


def test_files_that_leave_the_folder(world, tmp_path):
    bundle = world.store(2)
    (bundle / "link.txt").symlink_to("/etc/passwd")
    with pytest.raises(StageError, match=r"link\.txt: is a link"):
        evidence.verify(bundle)
    (bundle / "link.txt").unlink()
    with (bundle / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  ../../outside.txt\n")
    signing.sign(bundle)
    world.refused(world.promote(2), "leads out of the bundle")

    class Hostile:
        """An artifact store that answers with names of its own choosing."""

        def list_artifacts(self, path):
            name = {"data": "data/bundle", "data/bundle": self.name}[path]
            return [SimpleNamespace(path=name, is_dir=path == "data", file_size=1)]

        def download_artifacts(self, name, dst_path):
            raise AssertionError(f"asked for {name}")

    for name in ("data/bundle/../../../x", "/etc/passwd", "data/other/x", "data/bundle/a\\..\\x", "data/bundle/.."):
        hostile = Hostile()
        hostile.name = name
        with pytest.raises(StageError, match="leads out of the bundle"):
            bundles.copy(hostile, "", tmp_path / "out")
    for model in ("../../x", "a/b", "", ".hidden"):
        with pytest.raises(StageError, match="no name of a model"):
            state.folder(model)


def test_pickle_in_place_of_weights(world, tmp_path):
    struck = tmp_path / "struck"
    bomb = pickle.dumps(Bomb(struck))
    bundle = world.store(2)
    (bundle / "model" / "model.pkl").write_bytes(bomb)
    sums(bundle)
    signing.sign(bundle)
    world.refused(world.promote(2), "no files of this kind")
    (bundle / "model" / "model.pkl").unlink()
    np.save(bundle / "golden" / "images.npy", np.array([Bomb(struck)], object), allow_pickle=True)
    sums(bundle)
    signing.sign(bundle)
    world.refused(world.promote(2), "")
    (bundle / "model" / "model.onnx").write_bytes(bomb)
    world.refused(world.promote(2), "signature does not hold")
    assert not struck.exists()


def test_pickle_through_mlflows_own_loader(world, tmp_path):
    """The MLmodel file is rewritten so that MLflow itself would unpickle: it refuses, and nobody of ours asks it."""
    import mlflow

    struck = tmp_path / "struck"
    folder = world.store(2).parent.parent
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Bomb(struck)))
    text = (folder / "MLmodel").read_text().replace("registry.pyfunc", "mlflow.pyfunc.model")
    text = text.replace(f"    data: data/{TARGET}\n", "")
    (folder / "MLmodel").write_text(
        text.replace("python_function:", "python_function:\n    python_model: python_model.pkl")
    )
    with pytest.raises(Exception, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(f"models:/{MODEL}/2")
    assert world.promote(2).action == "live" and not struck.exists()


def test_alias_written_straight_into_the_database(world):
    def write(version):
        with sqlite3.connect(tracking.home() / "mlflow.db") as database:
            changed = database.execute(
                "update registered_model_aliases set version = ? where alias = 'production' and name = ?",
                [version, MODEL],
            )
            assert changed.rowcount == 1
        return reconcile.reconcile([MODEL])[0]

    world.refused(write(3), "did not pass its gates")
    world.refused(write(77), "there is no such version")


def test_version_made_by_hand(world):
    made = world.client.create_model_version(MODEL, str(world.store(2)), tags={"quantmill.verdict": "passed"})
    world.refused(world.promote(made.version), "not registered by Quantmill")
    copied = world.client.copy_model_version(f"models:/{MODEL}/2", MODEL)
    world.refused(world.promote(copied.version), "not registered by Quantmill")


def test_bundle_removed_from_the_store(world):
    shutil.rmtree(world.store(2))
    world.refused(world.promote(2), "it holds no bundle")


def test_a_device_pulls_none_of_it(world, tmp_path):
    (world.store(1) / "model" / "model.onnx").write_bytes(b"forged")
    with pytest.raises(StageError, match="signature does not hold"):
        pull.pull("tiny", TARGET, out=tmp_path / "device")
    with pytest.raises(StageError, match="did not pass its gates"):
        pull.pull("tiny", TARGET, "3", tmp_path / "device")
    assert not (tmp_path / "device").exists()


def test_forged_webhooks_wake_nobody():
    woken = []
    secret, body = "a secret of the tests alone", b'{"entity": "model_version_alias"}'
    client = TestClient(webhook.create_app(secret, lambda: woken.append(1)))

    def headers(secret=secret, body=body, stamp=None, delivery="one"):
        stamp = str(int(time.time()) if stamp is None else stamp)
        digest = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
        signature = "v1," + base64.b64encode(digest).decode()
        return {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": stamp, "X-MLflow-Signature": signature}

    forged = [
        {},
        headers(secret="another secret of somebody"),
        headers(body=b"{}"),
        {**headers(), "X-MLflow-Delivery-Id": "two"},
        {**headers(), "X-MLflow-Signature": "v1,"},
        headers(stamp=int(time.time()) - 3600),
        headers(stamp=int(time.time()) + 3600),
    ]
    for wrong in forged:
        assert client.post("/mlflow", content=body, headers=wrong).status_code == 401, wrong
    time.sleep(0.2)
    assert not woken
    assert client.post("/mlflow", content=body, headers=headers()).status_code == 202
    assert client.post("/mlflow", content=body, headers=headers()).status_code == 401  # again, word for word
    assert client.post("/mlflow", content=bytes(2**21), headers=headers()).status_code == 413
    time.sleep(0.2)
    assert woken == [1]
