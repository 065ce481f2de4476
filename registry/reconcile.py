"""Makes the world follow the alias `production`: verify, roll out, check, confirm; or put the alias back and say why.

Every step can be the last before the process dies. What serves changes in one rename, a version is confirmed only
after its health check, and reasons are written before the alias moves back; so running it again always finishes.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import params
from pipelines.files import read_json
from pipelines.stage import StageError, UnansweredError
from registry import bundles, evidence, notes, state, tracking
from registry.state import Release, State

PRODUCTION = "production"
PROVE_SECONDS = 300
HEALTH_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What became of a model: `action` is `live`, `unchanged`, `refused`, `restored` or `nothing`."""

    model: str
    action: str
    version: str | None  # what serves now
    reason: str = ""


def reconcile(models: Sequence[str] | None = None) -> list[Outcome]:
    """Make what serves here follow the alias `production` of `models`; without names, of all of this project.

    Safe to run at any time, by several processes, and after one was killed. A refused promotion is an Outcome with
    its reason, not an error. Raises StageError when MLflow cannot be asked; what serves goes on.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if not tracking.reachable():
        raise UnansweredError(f"MLflow at {tracking.uri()} does not answer; what serves goes on")
    try:
        client = tracking.client()
        return [_follow(client, model) for model in models or names()]
    except (MlflowException, RequestException) as error:
        raise UnansweredError(f"MLflow at {tracking.uri()} failed: {_line(error)}; what serves goes on") from error


def names() -> list[str]:
    """Return the registered models of the project in this folder, and those of which something serves here."""
    found = set(state.models())
    if params.PARAMS.is_file():
        project = params.value("project")
        found |= {f"{project}.{target}" for target in params.value("targets")}
    return sorted(found)


def _follow(client: Any, model: str) -> Outcome:
    """Follow the alias until it rests: it may move while a version is being checked."""
    state.folder(model).mkdir(parents=True, exist_ok=True)
    with tracking.alone(f"reconcile-{model}"):
        outcome = _once(client, model)
        for _ in range(5):
            now = state.read(model)
            if _alias(client, model) == (now.current.version if now else None):
                break
            again = _once(client, model)
            outcome = replace(outcome, version=again.version) if outcome.action == "refused" else again
    return outcome


def _once(client: Any, model: str) -> Outcome:
    wanted = _alias(client, model)
    notes.undo_stages(client, model)
    live = state.read(model)
    if wanted is None:
        good = _last_good(client, model, live, "")
        if good is None:
            return Outcome(model, "nothing", None)
        client.set_registered_model_alias(model, PRODUCTION, good.version)
        return Outcome(model, "restored", good.version, "the alias was removed, and put back on what serves")
    try:
        release = _roll_out(client, model, wanted, live)
    except StageError as error:
        return _refuse(client, model, wanted, str(error))
    if release is None:
        notes.mark_live(client, model, wanted)
        return Outcome(model, "unchanged", wanted)
    notes.mark_live(client, model, wanted)
    return Outcome(model, "live", wanted)


def _roll_out(client: Any, model: str, wanted: str, live: State | None) -> Release | None:
    """Bring the wanted version to serve; return it, or None when it serves already. Raises StageError."""
    source = _source(client, model, wanted)
    known = {r.source: r for r in ((*live.history, live.current) if live else ())}
    release = known.get(source)
    if release is None or not _holds(model, release):
        release = _take_in(client, model, Release(wanted, source, ""))
    release = Release(wanted, source, release.bundle)
    if live and live.current == release and live.confirmed:
        return None
    prove(state.bundle_folder(model, release.bundle))
    rolled = live.then(release) if live else State(release, False, ())
    state.write(model, rolled)
    try:
        _check_health(model, release)
    except StageError:
        state.write(model, live if live and live.confirmed else _before(rolled))
        raise
    state.write(model, rolled.confirm())
    return release


def _before(rolled: State) -> State | None:
    if not rolled.history:
        return None
    return State(rolled.history[-1], True, rolled.history[:-1])


def _take_in(client: Any, model: str, release: Release) -> Release:
    """Fetch a bundle, verify it, and only then put it among those that may serve."""
    place = state.folder(model) / "bundles"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=place) as scratch:
        folder = Path(scratch) / "bundle"
        bundles.fetch(client, release.source, folder)
        evidence.promotable(evidence.verify(folder, model))
        digest = evidence.bundle_hash(folder)
        target = state.bundle_folder(model, digest)
        if target.exists():  # an earlier copy, which did not hold any more or was not known to the state
            target.rename(Path(scratch) / "old")
        folder.rename(target)
    return Release(release.version, release.source, digest)


def prove(bundle: Path) -> None:
    """Load a bundle and run its golden images in a process of its own, which may crash. Raises StageError."""
    command = [sys.executable, "-m", "registry.prove", str(bundle)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROVE_SECONDS)
    except subprocess.TimeoutExpired:
        raise StageError(f"it did not run its golden images within {PROVE_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise StageError(last.removeprefix("prove: "))


def _check_health(model: str, release: Release) -> None:
    """Wait until the server of this model, if one runs here, answers with the new bundle. Raises StageError."""
    import requests

    path = state.folder(model) / "server.json"
    end = time.monotonic() + HEALTH_SECONDS
    while path.is_file():
        try:
            health = requests.get(read_json(path)["url"] + "/health", timeout=5).json()
        except requests.ConnectionError:
            return  # the server died without a word; the next one loads this release when it starts
        except (requests.RequestException, OSError, ValueError):
            health = {}
        if health.get("bundle") == release.bundle:
            return
        if reason := health.get("failed", {}).get(release.bundle):
            raise StageError(f"the server could not take it: {reason}")
        if time.monotonic() > end:
            raise StageError(f"the server did not take it within {HEALTH_SECONDS} s")
        time.sleep(0.05)


def _refuse(client: Any, model: str, version: str, reason: str) -> Outcome:
    """Write the reason on the version, then put the alias back on the last good version, if it still stands there."""
    live = state.read(model)
    good = _last_good(client, model, live, version)
    notes.mark_refused(client, model, version, reason)
    if _alias(client, model) == version:
        if good:
            client.set_registered_model_alias(model, PRODUCTION, good.version)
        else:
            client.delete_registered_model_alias(model, PRODUCTION)
    if good is None and live and live.current.version == version:
        state.write(model, None)
    return Outcome(model, "refused", good.version if good else None, f"version {version}: {reason}")


def _last_good(client: Any, model: str, live: State | None, but: str) -> Release | None:
    """Return the newest release that was confirmed here, still is a version of the model, and still verifies."""
    if live is None:
        return None
    confirmed: list[Release] = [*live.history, *([live.current] if live.confirmed else [])]
    for release in reversed(confirmed):
        if release.version != but and _holds(model, release):
            try:
                if _source(client, model, release.version) == release.source:
                    return release
            except StageError:
                continue
    return None


def _holds(model: str, release: Release) -> bool:
    """Say whether the local copy of a release still verifies."""
    folder = state.bundle_folder(model, release.bundle)
    try:
        evidence.promotable(evidence.verify(folder, model))
        return evidence.bundle_hash(folder) == release.bundle
    except (StageError, OSError, ValueError, KeyError, TypeError):
        return False


def _alias(client: Any, model: str) -> str | None:
    """Return the version on which `production` stands. It need not exist."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_registered_model(model).aliases.get(PRODUCTION)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return None if version is None else str(version)


def _source(client: Any, model: str, version: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version(model, version).source)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise StageError("there is no such version") from None
        raise


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
