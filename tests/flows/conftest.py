"""One PostgreSQL and one Prefect server for all tests of the flows."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.flows import servers


@pytest.fixture(scope="session")
def database():
    """The port of a PostgreSQL with the databases `prefect` and `mlflow`."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # its own user could not enter pytest's folders
    try:
        with servers.postgres(folder) as port:
            yield port
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect(database, tmp_path_factory):
    """A Prefect server on PostgreSQL."""
    server = servers.Prefect(
        tmp_path_factory.mktemp("prefect"), f"postgresql+asyncpg://postgres@127.0.0.1:{database}/prefect"
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def own_prefect(tmp_path_factory):
    """No test reads or writes the profile and the database of the user."""
    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect-home"))
    yield
    os.environ.pop("PREFECT_HOME")
    if before:
        os.environ["PREFECT_HOME"] = before
