"""Another machine over SSH: a real server, whose Python has numpy and two runtimes and nothing of ours."""

import socket
from pathlib import Path

import pytest
import yaml

from pipelines import check, measure, remote, targets
from pipelines.params import parse
from pipelines.stage import StageError
from tests.pipelines.test_runtimes import make, project  # noqa: F401 - project is a fixture

OPTIONS = {"threads": 1, "warmup": 2, "runs": 20, "batch": 4}
SHAPE = [1, 16, 16]


@pytest.fixture(scope="module")
def artifact(project):  # noqa: F811
    return project / "build/onnx/pruned.onnx"


def test_the_harness_runs_there_and_leaves_nothing_behind(device, sshd, artifact):
    files = {"one": artifact, "two": artifact}
    times = measure.interleaved("onnxruntime", files, SHAPE, OPTIONS, device)["times_ms"]
    assert {name: len(found) for name, found in times.items()} == {"one": 20, "two": 20}
    assert min(times["one"]) > 0
    found = measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, device)
    assert found["load_ms"] > 0 and found["throughput_per_s"] > 0 and found["peak_memory_mb"] > 20
    assert [path.name for path in (sshd.root / "it's a device").iterdir()] == [".venv"]
    assert remote.lacking(device, "onnxruntime") is None


def test_an_artifact_of_more_files_arrives_whole(project, device, tmp_path):  # noqa: F811
    runtime, *_ = make(project, "openvino", "fp32", tmp_path)
    found = measure.alone("openvino", tmp_path / runtime.FILES[0], SHAPE, OPTIONS, device)
    assert len(runtime.FILES) > 1 and found["load_ms"] > 0


def test_what_is_missing_there_is_named_in_one_line(device, artifact):
    where = r"install it there, into .*it's a device/\.venv, or for its python3$"
    with pytest.raises(StageError, match=r"^ssh://.*: has no ai_edge_litert; " + where):
        measure.alone("litert", artifact, SHAPE, OPTIONS, device)
    assert "has no ai_edge_litert" in str(remote.lacking(device, "litert"))


def test_a_broken_artifact_fails_there_with_its_reason(device, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(StageError, match=r"^ssh://.*: fails there: .*") as error:
        measure.alone("onnxruntime", tmp_path / "model.onnx", SHAPE, OPTIONS, device)
    assert "\n" not in str(error.value)


def test_a_host_that_is_away_or_unknown_or_refuses_the_key_is_one_line(device, sshd, artifact):
    root = sshd.root
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    away = device.replace(f":{sshd.port}/", f":{nobody}/")
    with pytest.raises(StageError, match=r"^ssh://.*: cannot be reached: .*refused"):
        measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, away)
    (root / "known_hosts").rename(root / "aside")
    try:
        with pytest.raises(StageError, match=r"cannot be reached: Host key verification failed"):
            measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, device)
    finally:
        (root / "aside").rename(root / "known_hosts")
    (root / "authorized_keys").rename(root / "aside")
    try:
        with pytest.raises(StageError, match=r"cannot be reached: .*Permission denied"):
            measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, device)
    finally:
        (root / "aside").rename(root / "authorized_keys")


def test_a_port_that_is_none_is_one_line(artifact):
    with pytest.raises(StageError, match=r"^ssh://host:99999/x: .*[Pp]ort"):
        measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, "ssh://host:99999/x")


TARGET = {"runtime": "onnxruntime", "precision": "fp32", "options": {}, "search": "none", "aim": {}, "gates": {}}


@pytest.mark.parametrize(
    "device",
    [
        "gpu",
        "ssh://host",
        "ssh://-oProxyCommand=x/tmp",
        "ssh://a b@host/x",
        "ssh://user:secret@host/x",
        "ssh://host/x y",
        "ssh://host:99999999/x",
    ],
)
def test_an_address_that_is_none_is_refused(device):
    with pytest.raises(StageError, match=r"^params\.yaml: targets\.t\.device: "):
        parse({**TARGET, "device": device}, targets.Target, "targets.t")


def test_a_runtime_that_is_timed_nowhere_has_no_device():
    target = {**TARGET, "runtime": "tensorrt", "device": "ssh://jetson/x"}
    with pytest.raises(StageError, match="tensorrt is not timed; write cpu"):
        targets.check("t", targets.Target(**target))


def test_check_says_before_anything_runs_that_a_device_is_not_there(project, monkeypatch, capsys, tmp_path):  # noqa: F811
    monkeypatch.chdir(project)
    declared = yaml.safe_load(Path("params.yaml").read_text())
    declared["targets"] = {"t": {**TARGET, "device": "ssh://nobody.invalid/x"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(declared))
    check.main(tmp_path / "params.yaml", tmp_path / "check.json")
    assert "target t cannot be measured: ssh://nobody.invalid/x: cannot be reached" in capsys.readouterr().out
