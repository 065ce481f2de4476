"""Fixtures that more than one folder uses."""

import shutil

import pytest
from filelock import FileLock

from tests import line

pytest_plugins = ["tests.devices", "tests.tiny"]
LONGEST = ["test_docs.py", "test_line.py", "test_machines.py", "test_project.py"]


def pytest_collection_modifyitems(items):
    """Start with the files that take minutes, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, headless."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip(
            "no Chromium on this machine; install it to drive MLflow's UI and the report: apt-get install chromium"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def built_line(tmp_path_factory, worker_id):
    """A shrunk copy of the project with its line built: its folder, and what `dvc repro` said.

    It is built once for all processes that run tests; each file of tests gets a copy of its own.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    said = shared / "line.txt"
    with FileLock(shared / "line.lock"):
        if not said.is_file():
            (shared / "line").mkdir()
            root = line.copy(shared / "line")
            done = line.run(root, "dvc", "repro")
            line.run(root, "git", "add", "--force", "dvc.lock")
            said.write_text(done.stdout)
    copied = tmp_path_factory.mktemp("line") / "project"
    shutil.copytree(shared / "line", copied, symlinks=True)
    return copied, said.read_text()
