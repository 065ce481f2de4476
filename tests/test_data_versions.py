"""Data under DVC: added, imported from another repository or a bucket, pinned by hash, pushed and pulled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.data import Dataset
from pipelines.files import sha256_tree
from tests import line

pytestmark = pytest.mark.slow
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
PHOTOS = {
    "source": {"format": "folder", "path": "photos"},
    "channels": 3,
    "bits": 8,
    "splits": {"val": 0.25, "test": 0.25},
    "max_rejected": 0.0,
}
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def photos(folder: Path, numbers: range) -> None:
    """Write images of the classes cat and dog."""
    for n in numbers:
        file = folder / ("cat", "dog")[n % 2] / f"{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (16, 16, 3), np.uint8)).save(file)


def commit(root: Path, message: str) -> None:
    line.run(root, *GIT, "add", "-A")
    line.run(root, *GIT, "commit", "-qm", message)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project that takes its images from `photos`."""
    root = line.copy(tmp_path_factory.mktemp("versions") / "project")
    found = yaml.safe_load((root / "params.yaml").read_text())
    found["data"] = PHOTOS
    (root / "params.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    commit(root, "Own photographs")
    line.run(root, "dvc", "repro", "check")  # once for all tests
    commit(root, "Checked")
    return root


@pytest.fixture
def root(project, tmp_path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on a free port of this machine; gives its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    names = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **names).create_bucket(Bucket="store")
    yield address
    server.stop()


def count(root: Path) -> int:
    return len(Dataset(root / "build/data").index)


def prepared(root: Path) -> list[str]:
    return line.executed(line.run(root, "dvc", "repro", "prepare"))


def test_added_data_is_a_version_that_comes_back_by_its_hash(root):
    photos(root / "photos", range(12))
    line.run(root, "dvc", "add", "photos")
    assert prepared(root) == ["prepare"] and count(root) == 12
    commit(root, "First photographs")
    line.run(root, "git", "tag", "production")
    first, index = sha256_tree(root / "build/data"), (root / "build/data/index.parquet").read_bytes()

    photos(root / "photos", range(12, 14))
    line.run(root, "dvc", "add", "photos")
    assert prepared(root) == ["prepare"] and count(root) == 14
    commit(root, "More photographs")
    line.run(root, "dvc", "get", "--rev", "production", "-o", "reference.parquet", ".", "build/data/index.parquet")
    assert (root / "reference.parquet").read_bytes() == index, "what drift is measured against"

    line.run(root, *GIT, "checkout", "-q", "HEAD~1", "--", "photos.dvc", "dvc.lock")
    line.run(root, "dvc", "checkout", "photos.dvc", "prepare")
    assert prepared(root) == [], "DVC has the outputs of that version"
    assert sha256_tree(root / "build/data") == first and len(list((root / "photos").rglob("*.png"))) == 12


def test_data_imported_from_another_repository_stay_at_their_version(root, tmp_path):
    other = tmp_path / "datasets"
    other.mkdir()
    line.run(other, "git", "init", "-q")
    line.run(other, "dvc", "init", "-q")
    for number, version in enumerate(("v1", "v2")):
        photos(other / "photos", range(12 + 4 * number))
        line.run(other, "dvc", "add", "-q", "photos")
        commit(other, version)
        line.run(other, "git", "tag", version)

    line.run(root, "dvc", "import", "--rev", "v1", str(other), "photos")
    pinned = yaml.safe_load((root / "photos.dvc").read_text())
    assert pinned["deps"][0]["repo"]["rev"] == "v1" and len(pinned["deps"][0]["repo"]["rev_lock"]) == 40
    assert prepared(root) == ["prepare"] and count(root) == 12
    line.run(root, "dvc", "update", "photos.dvc")
    assert prepared(root) == [], "v1 is what was asked for"
    line.run(root, "dvc", "update", "--rev", "v2", "photos.dvc")
    assert prepared(root) == ["prepare"] and count(root) == 16


def remote(root: Path, address: str, prefix: str) -> None:
    line.run(root, "dvc", "remote", "add", "-d", "store", f"s3://store/{prefix}")
    line.run(root, "dvc", "remote", "modify", "store", "endpointurl", address)


def test_a_bucket_gives_back_what_was_pushed_and_nothing_is_run(root, bucket, tmp_path):
    photos(root / "photos", range(12))
    line.run(root, "dvc", "add", "photos")
    remote(root, bucket, "cache")
    prepared(root)
    commit(root, "Photographs")
    line.run(root, "dvc", "push", "-r", "store", "photos.dvc", "prepare", "check", **KEYS)

    clone = tmp_path / "clone"
    line.run(tmp_path, "git", "clone", "-q", str(root), str(clone))
    line.run(clone, "dvc", "pull", "photos.dvc", "prepare", "check", **KEYS)
    assert sha256_tree(clone / "photos") == sha256_tree(root / "photos")
    assert prepared(clone) == [] and sha256_tree(clone / "build/data") == sha256_tree(root / "build/data")


def test_data_imported_from_a_bucket_notice_a_change_there(root, bucket, tmp_path):
    import boto3

    names = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=bucket, **names)
    photos(tmp_path / "made", range(12))
    for file in (tmp_path / "made").rglob("*.png"):
        client.upload_file(str(file), "store", f"raw/{file.relative_to(tmp_path / 'made').as_posix()}")
    remote(root, bucket, "raw")
    line.run(root, "dvc", "import-url", "remote://store/", "photos", **KEYS)
    assert prepared(root) == ["prepare"] and count(root) == 12

    photos(tmp_path / "made", range(12, 13))
    client.upload_file(str(tmp_path / "made/cat/012.png"), "store", "raw/cat/012.png")
    assert prepared(root) == [], "an import moves when it is updated, not before"
    line.run(root, "dvc", "update", "photos.dvc", **KEYS)
    assert prepared(root) == ["prepare"] and count(root) == 13
