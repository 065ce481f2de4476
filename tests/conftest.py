"""Fixtures that more than one folder uses."""

import shutil

import pytest

pytest_plugins = ["tests.tiny"]


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
