"""compose.yaml keeps to the Compose specification, opens nothing to the network, and holds no secret."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from tests import line

FILE = line.ROOT / "compose.yaml"
# As compose reads it: merge keys resolved, variables replaced by their default or a stand-in.
INTERPOLATED = re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)\}", lambda found: found[1] or "given", FILE.read_text())
VALUE = yaml.safe_load(INTERPOLATED)
SERVICES = VALUE["services"]
SECRETS = {"POSTGRES_PASSWORD": "secret-1", "S3_USER": "secret-2", "S3_PASSWORD": "secret-3"}


def refused(value: dict) -> str:
    """Return what the specification has against a file, or nothing."""
    compose_spec = pytest.importorskip("compose_spec", reason="needs the extra test")
    try:
        found = compose_spec.PyCompose.from_yaml(yaml.safe_dump(value, sort_keys=False))
        found.validate()
    except ValueError as error:
        return str(error)
    return ""


def test_it_keeps_to_the_specification():
    assert refused(VALUE) == ""
    wrong = {**VALUE, "services": {**SERVICES, "mlflow": {**SERVICES["mlflow"], "imagee": "x"}}}
    assert "imagee" in refused(wrong), "the check itself would see a mistake"


def test_docker_compose_takes_it():
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("needs docker compose; it needs no running engine")
    done = subprocess.run(
        ["docker", "compose", "-f", FILE, "config", "-q"], env={**os.environ, **SECRETS}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_a_service_names_is_there():
    volumes = set(VALUE["volumes"])
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in volumes or source.startswith((".", "/")), f"{name}: {volume}"
    assert {"postgres", "s3", "mlflow", "prefect", "worker", "stages"} <= set(SERVICES)


def test_ports_are_on_the_loopback_interface_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_every_secret_comes_from_outside():
    for key, text in re.findall(r"(\w*(?:PASSWORD|SECRET\w*|ACCESS_KEY\w*)): (.+)", FILE.read_text()):
        assert text.startswith("${"), key
    assert not re.search(r"postgres:(?!\$\{)\w+@", FILE.read_text())


def test_workers_and_the_servers_they_ask_agree():
    deployed = yaml.safe_load((line.ROOT / "prefect.yaml").read_text())["deployments"]
    pools = {d["work_pool"]["name"] for d in deployed}
    commands = " ".join(" ".join(s["command"]) for s in SERVICES.values() if "command" in s)
    assert pools == set(re.findall(r"--pool=(\w+)", commands))
    for name in ("worker", "stages"):
        environment = SERVICES[name]["environment"]
        assert environment["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
