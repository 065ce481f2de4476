"""More than one machine: clones that share PostgreSQL, an S3 bucket, and nothing else."""

import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import yaml

from tests import line
from tests.flows import servers

pytestmark = pytest.mark.slow
BUCKET = "line"
INT8 = {"runtime": "openvino", "precision": "int8", "device": "cpu"}
INT8 |= {"search": "none", "aim": {}, "gates": {"drop_fp32": {"max": 100}}}
NNCF = {"ranges": "mean_minmax", "smooth_quant": False}
ORT = {"activations": "u8", "operators": "all", "reduce_range": False}
TARGETS = {
    "openvino-one": {**INT8, "options": {"preset": "performance", "bias_correction": "fast", **NNCF}},
    **{f"onnxruntime-{n}": {**INT8, "runtime": "onnxruntime", "options": {"ranges": r, "per_channel": c, **ORT}}
       for n, r, c in (("one", "minmax", True), ("two", "minmax", False), ("three", "percentile", True),
                       ("four", "percentile", False), ("five", "mse", True))},
}  # fmt: skip


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of an S3 server with a bucket, whose key is in the environment."""
    boto3 = pytest.importorskip("boto3", reason="needs the extra team")
    folder, port = tmp_path_factory.mktemp("s3"), servers.port()
    url = f"http://127.0.0.1:{port}"
    process = servers.start(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder, folder / "s3.log"
    )
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("MLFLOW_S3_ENDPOINT_URL", url)
    servers.until(lambda: servers.answers(f"{url}/moto-api/"), "S3", process=process, log=folder / "s3.log")
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
    yield url
    servers.stop(process)
    patch.undo()


@pytest.fixture(scope="module")
def pool(prefect, tmp_path_factory):
    """The work pool and the deployment of `prefect.yaml` that take stages."""
    folder = tmp_path_factory.mktemp("deploy")
    for words in (
        ["work-pool", "create", "--type", "process", "--overwrite", "stages"],
        ["deploy", "--name", "stages", "--prefect-file", str(line.ROOT / "prefect.yaml")],
    ):
        subprocess.run(
            [servers.PROGRAMS / "prefect", "--no-prompt", *words], cwd=folder, check=True, capture_output=True,
            env=servers.environment(**prefect.client),
        )  # fmt: skip
    return "stages"


def on_bucket(root, bucket):
    """Give a project the bucket as its DVC remote."""
    line.run(root, "dvc", "remote", "add", "--default", "team", f"s3://{BUCKET}/dvc-{root.parent.name}")
    line.run(root, "dvc", "remote", "modify", "team", "endpointurl", bucket)
    servers.commit(root, "A remote")


def clone(root, name):
    line.run(root.parent, "git", "clone", "-q", str(root), name)
    return root.parent / name


def worker(place, prefect, code=line.ROOT):
    """Start a worker of the pool in a clone; it is called like the clone."""
    words = ["worker", "start", "--pool", "stages", "--name", place.name, "--limit", "1", "--install-policy", "never"]
    more = {**prefect.client, "QUANTMILL_ROOT": str(place), "PYTHONPATH": str(code)}
    return servers.start([str(servers.PROGRAMS / "prefect"), *words], place, place.parent / f"{place.name}.log", **more)


def test_six_targets_are_quantized_by_two_workers_to_the_same_bytes(prefect, pool, bucket, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    value = line.copy(here) / "params.yaml"
    value.write_text(yaml.safe_dump({**yaml.safe_load(value.read_text()), "targets": TARGETS}, sort_keys=False))
    line.run(here, "rm", "-rf", ".quantmill")
    on_bucket(here, bucket)
    line.run(here, "dvc", "repro", "calibrate")
    servers.commit(here, "Calibrated")
    line.run(here, "dvc", "push")
    there = clone(here, "there")
    done = servers.build(here, "--target", "quantize", PYTHONPATH=str(here), **prefect.client)
    assert done.stdout.splitlines()[-1] == "6 ran, 8 unchanged"
    workers = [worker(clone(here, name), prefect) for name in ("worker-a", "worker-b")]
    line.run(there, "dvc", "pull", "--with-deps", "calibrate")
    try:
        done = servers.build(there, "--target", "quantize", "--pool", pool, PYTHONPATH=str(there), **prefect.client)
    finally:
        for one in workers:
            servers.stop(one)
    assert done.stdout.splitlines()[-1] == "6 ran, 8 unchanged"
    assert line.outputs(there) == line.outputs(here)
    ran = {r["name"]: r["labels"]["prefect.worker.name"] for r in prefect.runs("stage")}
    assert {f"quantize@{t}" for t in TARGETS} == set(ran) and set(ran.values()) == {"worker-a", "worker-b"}
    assert (there / "build/targets/openvino-one/model.xml").is_file()


def test_a_worker_killed_in_the_middle_of_a_stage_loses_nothing(prefect, pool, bucket, tmp_path):
    root = servers.project(tmp_path / "project", {"slow": {"seconds": 8}}, retries=1)
    on_bucket(root, bucket)
    line.run(root, "dvc", "repro", "prune")
    servers.commit(root, "Pruned")
    first = worker(clone(root, "first"), prefect)
    words = [sys.executable, "-m", "flows.build", "--target", "quantize", "--pool", pool]
    flow = servers.start(words, root, tmp_path / "build.log", **prefect.client)
    try:
        log = tmp_path / "first.log"
        servers.until(lambda: "Running stage 'quantize@slow'" in log.read_text(), "the stage runs", process=flow)
        family = psutil.Process(first.pid).children(recursive=True)
        second = worker(clone(root, "second"), prefect)
        os.kill(first.pid, signal.SIGKILL)
        for process in family:
            if process.is_running():
                process.kill()
        first.wait()
        assert flow.wait(200) == 0, (tmp_path / "build.log").read_text()[-3000:]
    finally:
        for one in (first, second, flow):
            servers.stop(one)
    assert "its worker 'first' is gone" in (tmp_path / "build.log").read_text()
    runs = [r for r in prefect.runs("stage") if r["name"] == "quantize@slow"]
    assert [(r["labels"]["prefect.worker.name"], r["state"]["type"]) for r in runs] == [
        ("first", "CRASHED"),
        ("second", "COMPLETED"),
    ]
    assert (root / "build/slow").read_text().startswith("slow\n")


def test_many_stages_fan_out_over_dask(prefect, bucket, tmp_path):
    root = servers.project(tmp_path / "project", {name: {"seconds": 0.2} for name in "abcdefgh"})
    on_bucket(root, bucket)
    alone = clone(root, "alone")
    line.run(alone, "dvc", "repro")
    port = servers.port()
    address = f"tcp://127.0.0.1:{port}"
    local = ["--no-dashboard", "--host", "127.0.0.1"]
    started = [
        servers.start([sys.executable, "-m", "distributed.cli.dask_scheduler", *local, "--port", str(port)], tmp_path,
                      tmp_path / "scheduler.log"),
    ]  # fmt: skip
    try:
        for name in ("one", "two"):
            words = [sys.executable, "-m", "distributed.cli.dask_worker", address, *local, "--nthreads", "1"]
            place = clone(root, name)
            started.append(servers.start(words, place, tmp_path / f"{name}.log", **prefect.client))
        done = servers.build(root, "--dask", address, **prefect.client)
    finally:
        for process in reversed(started):
            servers.stop(process, seconds=5)
    assert done.stdout.splitlines()[-1] == "19 ran"
    assert (root / "dvc.lock").read_text() == (alone / "dvc.lock").read_text()
    for name in ("one", "two"):
        assert (tmp_path / name / ".quantmill/trees/work-0/build").is_dir(), "both workers had stages"


def test_uncommitted_code_is_not_sent_to_workers(prefect, pool, bucket, tmp_path):
    root = servers.project(tmp_path / "project")
    on_bucket(root, bucket)
    line.change(root, {"prune": {"ratio": 0.9}})
    done = servers.build(root, "--pool", pool, check=False, **prefect.client)
    assert "params.yaml: not committed; workers build a commit" in done.stderr.splitlines()[-1]


def test_mlflow_keeps_its_records_in_postgresql_and_its_files_in_the_bucket(database, bucket, project, tmp_path):
    import boto3
    import psycopg2

    port = servers.port()
    url = f"http://127.0.0.1:{port}"
    store = f"postgresql+psycopg2://postgres@127.0.0.1:{database}/mlflow"
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    words += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
    more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = servers.start([sys.executable, "-m", "mlflow", *words], tmp_path, tmp_path / "mlflow.log", **more)
    try:
        servers.until(lambda: servers.answers(f"{url}/health"), "MLflow", process=server, log=tmp_path / "mlflow.log")
        code = [sys.executable, "-m", "registry.register", "build", "build/register.json"]
        done = line.run(project, *code, MLFLOW_TRACKING_URI=url, PYTHONPATH=str(line.ROOT))
        assert "4 of 4 variants were new to MLflow" in done.stdout
    finally:
        servers.stop(server)
    with psycopg2.connect(host="127.0.0.1", port=database, user="postgres", dbname="mlflow") as base:
        cursor = base.cursor()
        cursor.execute("select name from registered_models")
        assert cursor.fetchall() == [("tiny.onnxruntime-fp32",)]
    listed = boto3.client("s3", endpoint_url=bucket).list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")
    assert any(o["Key"].endswith("evidence.json") for o in listed["Contents"])
    shutil.rmtree(project)
