"""What a second run reads, what a killed run leaves, and the shards."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines import index
from pipelines.data import Input
from pipelines.files import sha256_tree
from tests import line
from tests.pipelines import sources


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settled(monkeypatch):
    """Files count as old at once, so that a test need not wait until they are."""
    monkeypatch.setattr("pipelines.kept.RACY", 0)


def said(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def same_as_clean(out: str, source: dict) -> None:
    """What a run wrote is what one writes that knows nothing."""
    shutil.rmtree(".quantmill")
    sources.run(source, out="clean")
    assert sha256_tree(Path(out)) == sha256_tree(Path("clean"))


def test_only_what_is_new_is_read_and_the_bytes_are_those_of_a_clean_run(settled, capsys):
    source = sources.folder(Path("source"))
    sources.run(source)
    assert "8 read, 8 decoded" in said(capsys)
    sources.picture(Path("source/cat/1a.png"), 99)  # in the middle: the places of the others change
    Path("source/dog/7.png").unlink()
    for count in (1, 0):
        sources.run(source, out="grown")
        assert f"8 images in 2 classes; 0 left out; {count} read, {count} decoded" in said(capsys)
    same_as_clean("grown", source)


def test_an_unchanged_file_is_not_opened(settled, monkeypatch):
    source = sources.folder(Path("source"))
    sources.run(source)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        dataset = sources.run(source, out="again")
    assert len(dataset.index) == 8 and sha256_tree(Path("data")) == sha256_tree(Path("again"))


@pytest.mark.parametrize("how", ["written over", "put in its place", "changed at once"])
def test_a_changed_file_of_the_same_size_and_time_is_noticed(how, monkeypatch, capsys):
    if how != "changed at once":
        monkeypatch.setattr("pipelines.kept.RACY", 0)
    source = sources.folder(Path("source"))
    file, other = Path("source/cat/0.png"), sources.picture(Path("other.png"), 99)
    size = max(file.stat().st_size, other.stat().st_size)
    for one in (file, other):
        one.write_bytes(one.read_bytes().ljust(size, b"\0"))
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    sources.run(source)
    capsys.readouterr()
    if how == "put in its place":
        os.replace(other, file)
    else:
        file.write_bytes(other.read_bytes())
    os.utime(file, ns=times)
    dataset = sources.run(source, out="again")
    assert f"{8 if how == 'changed at once' else 1} read, 1 decoded" in said(capsys)
    row = dataset.column("path").tolist().index("cat/0.png")
    assert dataset.image(row).tobytes() == sources.pixels(99).tobytes()
    same_as_clean("again", source)


@pytest.mark.parametrize("how", ["damaged", "cut", "gone"])
def test_what_is_kept_is_held_against_its_hash(settled, capsys, how):
    source = sources.folder(Path("source"))
    sources.run(source)
    (shard,) = Path(".quantmill/shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[1024 : 1024 + 256] = bytes(256)
    shard.unlink()
    if how != "gone":
        shard.write_bytes(content if how == "damaged" else b"")
    sources.run(source, out="again")
    assert f"{1 if how == 'damaged' else 8} read, 0 decoded" in said(capsys)
    same_as_clean("again", source)


def test_bad_files_are_named_again_in_every_run(settled, capsys):
    source = sources.folder(Path("source"))
    Path("source/cat/bad.png").write_bytes(b"")
    sources.run(source)
    sources.run(source, out="again")
    assert "left out: cat/bad.png: the file is empty (0 bytes)" in capsys.readouterr().out
    assert sources.rejected("again") == sources.rejected()


def test_shards_are_what_tarfile_writes_and_reads(tmp_path):
    files = {"a.jpg": b"x" * 700, f"{'long/' * 40}b.jpg": b"y" * 512, "käse.jpg": b""}
    with index.Shards(tmp_path) as shards, tarfile.open("wanted.tar", "w", format=tarfile.PAX_FORMAT) as wanted:
        for name, payload in files.items():
            shard, offset = shards.add(name, payload)
            assert shard == "images-00000.tar"
            Path("one").write_bytes(payload)
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            with Path("one").open("rb") as file:
                wanted.addfile(info, file)
            assert wanted.offset - -(-len(payload) // 512) * 512 == offset
    assert (tmp_path / shard).read_bytes() == Path("wanted.tar").read_bytes()


def test_camera_and_lidar_go_in_as_channels_of_one_array():
    """Three colours, and range, intensity and height as a LiDAR measures them, in metres."""
    for n in range(8):
        colours = sources.pixels(n) / 255
        metres = np.random.default_rng(n).normal((40, 0.3, -1.5), (5, 0.1, 0.5), (*colours.shape[:2], 3))
        file = Path("source", ("road", "tree")[n % 2], f"{n}.npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.dstack([colours, metres]).astype(np.float32))
    dataset = sources.run({"format": "folder", "path": "source"}, channels=6, bits=32)
    np.testing.assert_allclose(dataset.info["mean"][3:], (40, 0.3, -1.5), rtol=0.02)
    np.testing.assert_allclose(dataset.info["std"][3:], (5, 0.1, 0.5), rtol=0.05)
    prepared = dataset.preprocess(Input(height=12, width=16, resize="stretch"))(dataset.image(0))
    assert prepared.shape == (6, 12, 16) and abs(prepared.mean((1, 2))).max() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_killed_run(kind):
    source = sources.folder(Path("source"), count=200)
    sources.run(source)  # writes params.yaml
    shutil.rmtree(".quantmill")
    code = """
import sys, time
from pathlib import Path
from pipelines import inspection, prepare
decode = inspection.images.decode_image
def slowly(payload):
    time.sleep(0.2)
    return decode(payload)
inspection.images.decode_image = slowly
prepare.main(Path("killed"))
"""
    environment = {**os.environ, "PYTHONPATH": str(line.ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, **quiet)
    mine = psutil.Process(process.pid)
    while len(workers := mine.children()) < len(os.sched_getaffinity(0)):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(kind)
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    for one in alive:
        one.kill()
    assert gone and not alive
