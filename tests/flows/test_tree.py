"""Work trees: one flow in each; checkouts of a flow's own touch nothing of the user's."""

import pytest

from flows import graph, tree
from pipelines.stage import StageError
from tests import line
from tests.flows import servers


@pytest.fixture
def small(tmp_path):
    root = servers.project(tmp_path / "project")
    line.run(root, "dvc", "repro", "prune")
    return root


def test_a_busy_tree_is_told_with_who_is_there_and_what_to_do(small):
    told = pytest.raises(tree.Busy, match=r"busy: flow run 'first' \(process \d+\) works in it; wait for it")
    with tree.alone(small, "first", 0):
        with told, tree.alone(small, "second", 0.1):
            pass
        with tree.alone(small / ".quantmill/trees/other", "third", 0):
            pass
    with tree.alone(small, "second", 0):
        pass


def test_overrides_change_a_checkout_that_has_the_users_edits_and_not_the_users_file(small):
    line.change(small, {"targets": {"a": {"seconds": 0.01}}})
    before = (small / "params.yaml").read_bytes()
    with tree.place(small, "", ["prune.ratio=0.5"], False, "one", 0) as place:
        text = (place / "params.yaml").read_text()
        assert "0.5" in text and "0.01" in text and place != small
        line.run(place, "dvc", "repro")
        name = tree.save(place, [])
    assert (small / "params.yaml").read_bytes() == before and not place.exists()
    assert "prune.ratio" not in line.run(small, "git", "status", "--porcelain").stdout
    assert name in line.run(small, "dvc", "exp", "list").stdout
    assert (small / "build/pruned").read_text().find("0.3") > 0
    line.run(small, "git", "checkout", "params.yaml", "dvc.yaml")
    line.run(small, "dvc", "exp", "apply", name)
    assert "0.5" in (small / "build/pruned").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [("prune.ratoi=0.5", "ratoi"), ("prune.ratio", "write KEY=VALUE, such as prune.ratio=0.5")],
)
def test_a_wrong_override_is_told(small, override, message):
    with pytest.raises(StageError, match=message), tree.place(small, "", [override], False, "one", 0):
        pass


def test_a_checkout_has_cache_remotes_and_memory_of_its_own_project(small, tmp_path):
    line.run(small, "dvc", "remote", "add", "--default", "near", "../remote")
    servers.commit(small, "A remote")
    with tree.place(small, "nightly", [], False, "one", 0) as place:
        with graph.repository(place) as repo, graph.repository(small) as own:
            assert repo.cache.local.path == own.cache.local.path
            assert repo.config["remote"]["near"]["url"] == str(tmp_path / "remote")
        line.run(place, "dvc", "repro", "prune")
        assert tree.environment(small, place) == {"QUANTMILL_HOME": str(small / ".quantmill")}
    line.change(small, {"prune": {"ratio": 0.7}})
    servers.commit(small, "Prune more")
    with tree.place(small, "nightly", [], False, "two", 0) as again:
        assert again == place and "0.7" in (place / "params.yaml").read_text()
        assert [n for n in ("prepare", "prune") if graph.changed(place, n)] == ["prune"]


def test_fetch_brings_what_the_branch_is_upstream(small, tmp_path):
    clone = tmp_path / "clone"
    line.run(tmp_path, "git", "clone", "-q", str(small), str(clone))
    line.change(small, {"prune": {"ratio": 0.7}})
    servers.commit(small, "Prune more")
    for fetch, ratio in [(False, "0.3"), (True, "0.7")]:
        with tree.place(clone, "nightly", [], fetch, "one", 0) as place:
            assert ratio in (place / "params.yaml").read_text()
    commit = tree.git(small, "rev-parse", "HEAD")
    tree.have(clone, commit)
    with pytest.raises(StageError, match=r"commit 1111.* is not there, nor where it fetches from; push it"):
        tree.have(clone, "1" * 40)
