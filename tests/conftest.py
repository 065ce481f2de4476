"""Fixtures that more than one folder uses."""

import shutil

import pytest

from tests import line

pytest_plugins = ["tests.tiny"]
LONGEST = ["test_line.py", "test_machines.py"]


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


@pytest.fixture(scope="session")
def built_line(tmp_path_factory):
    """A shrunk copy of the project with its line built: its folder, and what `dvc repro` said."""
    root = line.copy(tmp_path_factory.mktemp("line"))
    done = line.run(root, "dvc", "repro")
    line.run(root, "git", "add", "--force", "dvc.lock")
    return root, done
