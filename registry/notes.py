"""What the release owner reads on a version's page: its status and, when it was refused, why. Nothing trusts it."""

import warnings
from typing import Any

STATUS, REASON = "quantmill.status", "quantmill.reason"
NOTICE = "> **Not in production**: "


def mark_live(client: Any, model: str, version: str) -> None:
    """Tag a version `live` and the one before it `replaced`; take the notice of an earlier refusal away."""
    for found in _versions(client, model):
        status = found.tags.get(STATUS)
        if str(found.version) == version:
            if status != "live":
                client.set_model_version_tag(model, version, STATUS, "live")
            if found.tags.get(REASON):
                client.delete_model_version_tag(model, version, REASON)
            _describe(client, model, found, "")
        elif status == "live":
            client.set_model_version_tag(model, str(found.version), STATUS, "replaced")


def mark_refused(client: Any, model: str, version: str, reason: str) -> None:
    """Write on a version, if it exists, that it was refused and why: tags, and the top of its description."""
    for found in _versions(client, model):
        if str(found.version) == version:
            client.set_model_version_tag(model, version, REASON, reason[:4000])
            client.set_model_version_tag(model, version, STATUS, "refused")
            _describe(client, model, found, reason)


def undo_stages(client: Any, model: str) -> None:
    """Take versions out of the legacy stage Production, which puts nothing into production, and say so on them."""
    for found in _versions(client, model):
        if found.current_stage == "Production":
            version = str(found.version)
            client.set_model_version_tag(
                model, version, REASON, "stages promote nothing here; set the alias production on the version"
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                client.transition_model_version_stage(model, version, "None")


def _describe(client: Any, model: str, found: Any, reason: str) -> None:
    rest = "\n".join(line for line in (found.description or "").split("\n") if not line.startswith(NOTICE)).lstrip("\n")
    text = f"{NOTICE}{' '.join(reason.split())}\n\n{rest}" if reason else rest
    if text != (found.description or ""):
        client.update_model_version(model, str(found.version), text)


def _versions(client: Any, model: str) -> list[Any]:
    return list(client.search_model_versions(f"name='{model}'", max_results=1000))
