"""The release owner's way: the real MLflow UI in a real browser, and what serves afterwards."""

import time

import pytest
import requests

from registry import register, state, tracking, variants
from tests.registry.conftest import command, free_port
from tests.tiny import MODEL, export

pytestmark = pytest.mark.slow

SECRET = "a secret of the tests alone"
STORED = {  # without these, a promotion modal and an assistant cover the page
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.workflowType_v1": '"machine_learning"',
}
EDITOR = (
    '[data-component-id^="codegen_mlflow_app_src_model-registry_components_aliases_modelversionviewaliaseditor.tsx_"]'
)


class Owner:
    """Somebody who has nothing but the UI."""

    def __init__(self, browser, url):
        self.page = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.page.set_default_timeout(20_000)
        lines = [f"localStorage.setItem({key!r}, {value!r});" for key, value in STORED.items()]
        self.page.add_init_script("".join(lines))
        self.url = url

    def open(self, version):
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/#/models/{MODEL}/versions/{version}")
        self.page.locator(EDITOR).first.wait_for()

    def promote(self, version):
        """Set production on a version; return the time of the last click."""
        self.open(version)
        self.page.locator(EDITOR).first.click()
        box = self.page.locator("[role=dialog] input[role=combobox]")
        box.fill("production")
        box.press("Enter")
        self.page.locator('[data-component-id="mlflow.edit-aliases-modal.save-button"]').click()
        return time.monotonic()


@pytest.fixture
def served(project, monkeypatch, request):
    """Versions of a fresh registration on a server, `quantmill serve`, and the receiver of its webhooks."""
    server = request.getfixturevalue(request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    found = {}
    build = project / "build"
    for name, verdict, drop in (("old", "passed", 0.1), ("new", "passed", 0.1), ("bad", "failed", 2.5)):
        fresh = time.time() % 1e4 / 1e5  # another number is another bundle is another version
        export(project, verdict=verdict, metrics={"accuracy": 0.9 + fresh, "drop_fp32": drop})
        register.sync(variants.read(build)[-1:])
        versions = tracking.client().search_model_versions(f"name='{MODEL}'")
        found[name] = str(max(int(v.version) for v in versions))
    if "production" in tracking.client().get_registered_model(MODEL).aliases:
        tracking.client().delete_registered_model_alias(MODEL, "production")
    ports = free_port(), free_port()
    serve, hook = (f"http://127.0.0.1:{port}" for port in ports)
    env = {"MLFLOW_TRACKING_URI": server.url, "QUANTMILL_WEBHOOK_SECRET": SECRET}
    words = ["webhook", "--port", str(ports[1]), "--url", f"{hook}/mlflow"]
    with (
        command(project, "serve", MODEL, "--port", str(ports[0]), ready=f"{serve}/health"),
        command(project, *words, ready=f"{hook}/health", **env),
        command(project, "reconcile", "--every", "2", **env),
    ):
        time.sleep(1.5)  # MLflow keeps its list of hooks for a second here
        yield server, serve, found


def until_live(url, version, start):
    """Wait until a version serves; return the seconds since `start`."""
    while requests.get(f"{url}/health").json()["version"] != version:
        assert time.monotonic() < start + 60, f"version {version} does not serve"
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.mark.parametrize("served", ["guarded"], indirect=True)
def test_promotion_refusal_and_roll_back_by_clicks(browser, served, record_property):
    server, serve, version = served
    owner = Owner(browser, server.url)
    record_property("first live s", until_live(serve, version["old"], owner.promote(version["old"])))
    record_property("click to live s", until_live(serve, version["new"], owner.promote(version["new"])))
    owner.promote(version["bad"])
    dialog = owner.page.locator("[role=dialog]")
    dialog.get_by_text("did not pass its gates").first.wait_for()
    assert "drop_fp32 is 2.5" in dialog.inner_text()
    client = tracking.client()
    assert str(client.get_registered_model(MODEL).aliases["production"]) == version["new"]
    record_property("click to rolled back s", until_live(serve, version["old"], owner.promote(version["old"])))
    owner.open(version["old"])
    owner.page.get_by_text("**passed**").or_(owner.page.get_by_text("compression")).first.wait_for()


@pytest.mark.parametrize("served", ["plain"], indirect=True)
def test_without_the_guard_the_alias_returns_with_the_reason(browser, served, record_property):
    server, serve, version = served
    owner = Owner(browser, server.url)
    until_live(serve, version["old"], owner.promote(version["old"]))
    start = owner.promote(version["bad"])
    client = tracking.client()
    seen = set()
    while True:
        now = str(client.get_registered_model(MODEL).aliases["production"])
        seen.add(now)
        tags = client.get_model_version(MODEL, version["bad"]).tags
        if now == version["old"] and tags.get("quantmill.status") == "refused":
            break
        assert time.monotonic() < start + 60
        time.sleep(0.02)
    record_property("click to alias back s", time.monotonic() - start)
    owner.open(version["bad"])
    owner.page.get_by_text("Not in production").first.wait_for()
    owner.page.get_by_text("drop_fp32 is 2.5").first.wait_for()
    assert requests.get(f"{serve}/health").json()["version"] == version["old"]
    assert state.read(MODEL).current.version == version["old"]
