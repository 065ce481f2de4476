"""The reconciler: what serves is always a version that passed, and is the alias in the end."""

import multiprocessing
import os
import shutil

import pytest

from pipelines.files import write_json
from registry import evidence, promote, reconcile, state, tracking
from tests.tiny import MODEL, TARGET


def alias(client, version=None):
    if version:
        client.set_registered_model_alias(MODEL, "production", str(version))
    found = client.get_registered_model(MODEL).aliases.get("production")
    return None if found is None else int(found)


def tags(client, version):
    return client.get_model_version(MODEL, str(version)).tags


def live():
    found = state.read(MODEL)
    return found and (int(found.current.version), found.confirmed)


def test_follows_the_alias_and_back(versions):
    assert reconcile.reconcile([MODEL])[0].action == "nothing"
    alias(versions, 1)
    assert reconcile.reconcile([MODEL])[0].action == "live"
    assert live() == (1, True) and tags(versions, 1)["quantmill.status"] == "live"
    assert reconcile.reconcile([MODEL])[0].action == "unchanged"
    alias(versions, 2)
    assert reconcile.reconcile()[0].version == "2"
    assert tags(versions, 1)["quantmill.status"] == "replaced"
    outcome = promote.rollback(MODEL)
    assert (outcome.action, outcome.version, live(), alias(versions)) == ("live", "1", (1, True), 1)


def test_a_failed_version_goes_back_with_its_reason(versions):
    alias(versions, 3)
    outcome = reconcile.reconcile([MODEL])[0]
    assert outcome.action == "refused" and "drop_fp32 is 2.5" in outcome.reason
    assert alias(versions) is None and live() is None
    alias(versions, 2)
    reconcile.reconcile([MODEL])
    alias(versions, 3)
    reconcile.reconcile([MODEL])
    assert alias(versions) == 2 and live() == (2, True)
    assert tags(versions, 3)["quantmill.status"] == "refused" and "drop_fp32" in tags(versions, 3)["quantmill.reason"]
    text = versions.get_model_version(MODEL, "3").description
    assert text.startswith("> **Not in production**: it did not pass its gates") and text.count("Not in prod") == 1


def test_promote_says_no_before_the_alias_moves(versions):
    from pipelines.stage import StageError

    with pytest.raises(StageError, match="did not pass its gates"):
        promote.promote(MODEL, "3")
    with pytest.raises(StageError, match="no version 9"):
        promote.promote(MODEL, "9")
    assert alias(versions) is None
    assert promote.promote(MODEL, "candidate").version == "2"


def test_a_removed_alias_is_put_back(versions):
    alias(versions, 1)
    reconcile.reconcile([MODEL])
    versions.delete_registered_model_alias(MODEL, "production")
    assert reconcile.reconcile([MODEL])[0].action == "restored" and alias(versions) == 1


def test_legacy_stage_promotes_nothing(versions):
    alias(versions, 1)
    reconcile.reconcile([MODEL])
    versions.transition_model_version_stage(MODEL, "2", "Production")
    reconcile.reconcile([MODEL])
    assert versions.get_model_version(MODEL, "2").current_stage == "None"
    assert "stages promote nothing" in tags(versions, 2)["quantmill.reason"] and live() == (1, True)


def test_a_damaged_local_copy_is_fetched_again(versions):
    alias(versions, 1)
    reconcile.reconcile([MODEL])
    folder = state.bundle_folder(MODEL, state.read(MODEL).current.bundle)
    (folder / "labels.txt").write_text("nonsense\n")
    assert reconcile.reconcile([MODEL])[0].version == "1"
    assert evidence.verify(folder, MODEL)


def test_what_serves_goes_on_when_mlflow_is_down(versions, monkeypatch):
    alias(versions, 1)
    reconcile.reconcile([MODEL])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    from pipelines.stage import StageError

    with pytest.raises(StageError, match="what serves goes on"):
        reconcile.reconcile([MODEL])
    assert live() == (1, True)


def test_an_unhealthy_roll_out_is_undone(versions, monkeypatch):
    from pipelines.stage import StageError

    alias(versions, 1)
    reconcile.reconcile([MODEL])

    def sick(model, release):
        if release.version == "2":
            raise StageError("the server could not take it: out of memory")

    monkeypatch.setattr(reconcile, "_check_health", sick)
    alias(versions, 2)
    outcome = reconcile.reconcile([MODEL])[0]
    assert outcome.action == "refused" and "out of memory" in outcome.reason
    assert live() == (1, True) and alias(versions) == 1


STEPS = {
    "registry.bundles": ("fetch",),
    "registry.state": ("write",),
    "registry.reconcile": ("prove", "_check_health"),
    "mlflow.MlflowClient": (
        *("get_registered_model", "get_model_version", "search_model_versions", "set_registered_model_alias"),
        *("set_model_version_tag", "delete_model_version_tag", "update_model_version", "get_logged_model"),
        *("delete_registered_model_alias",),
    ),
    "os": ("replace",),
    "pathlib.Path": ("rename",),
}


def _dies_at(step, counted):
    """Reconcile, and die right before (even numbers) or right after (odd ones) the given call."""
    import pkgutil

    calls = 0

    def wrap(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            mine = calls
            if mine * 2 == step:
                os._exit(9)
            result = real(*arguments, **options)
            if mine * 2 + 1 == step:
                os._exit(9)
            return result

        return call

    for place, names in STEPS.items():
        owner = pkgutil.resolve_name(place)
        for name in names:
            setattr(owner, name, wrap(getattr(owner, name)))
    reconcile.reconcile([MODEL])
    counted.value = calls
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "ends"), [(2, 2), (3, 1)])
def test_killed_between_every_two_of_its_steps(versions, monkeypatch, tmp_path, wanted, ends):
    """Whatever the last step was, what serves passed its gates, and one more run makes it the alias."""
    monkeypatch.setattr(reconcile, "prove", lambda bundle: evidence.prove(bundle, evidence.open_model(bundle)))
    alias(versions, 1)
    reconcile.reconcile([MODEL])
    start = tmp_path / "start"
    shutil.copytree(tracking.home(), start)
    context = multiprocessing.get_context("fork")
    step, died = 2, 0
    while True:
        shutil.rmtree(tracking.home() / "live")
        shutil.copytree(start / "live", tracking.home() / "live")
        _reset(versions, wanted)
        counted = context.Value("i", 0)
        child = context.Process(target=_dies_at, args=(step, counted))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
        died += 1
        between = state.read(MODEL).current
        assert int(between.version) in (1, 2) and evidence.verify(state.bundle_folder(MODEL, between.bundle), MODEL)
        reconcile.reconcile([MODEL])
        assert live() == (ends, True) and alias(versions) == ends, f"step {step}"
        if wanted == 3:
            assert tags(versions, 3)["quantmill.status"] == "refused"
            assert "drop_fp32" in versions.get_model_version(MODEL, "3").description.split("\n")[0]
        else:
            assert tags(versions, 2)["quantmill.status"] == "live"
        step += 1
    assert died > 10


def _reset(client, wanted):
    for version in ("1", "2", "3"):
        for key in ("quantmill.status", "quantmill.reason"):
            if key in tags(client, version):
                client.delete_model_version_tag(MODEL, version, key)
    text = client.get_model_version(MODEL, "3").description
    client.update_model_version(MODEL, "3", text.partition("\n\n")[2] if text.startswith("> ") else text)
    alias(client, wanted)


def _reconcile_once(barrier):
    barrier.wait()
    reconcile.reconcile([MODEL])
    os._exit(0)


@pytest.mark.slow
def test_two_at_once_and_two_promotions_in_one_second(versions):
    context = multiprocessing.get_context("fork")
    for first, last in ((1, 2), (3, 1), (2, 3)):
        before = alias(versions)
        barrier = context.Barrier(3)
        runs = [context.Process(target=_reconcile_once, args=(barrier,)) for _ in range(2)]
        for run in runs:
            run.start()
        alias(versions, first)
        barrier.wait()
        alias(versions, last)
        for run in runs:
            run.join()
            assert run.exitcode == 0
        reconcile.reconcile([MODEL])
        assert live() == (alias(versions), True)
        # Version 3 did not pass: what served before it stays, which is `first` if that was seen in time.
        assert alias(versions) in ([last] if last != 3 else [before, first])


def test_a_state_file_is_never_half_written(project):
    write_json(state.folder(MODEL) / "live.json", {"current": {}, "confirmed": True, "history": []})
    with pytest.raises(TypeError):
        state.read(MODEL)
    assert TARGET in MODEL
