"""Reads the graph of stages from DVC. It stands nowhere else."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.stage import StageError

LOCK = "dvc.lock"


def repository(tree: Path) -> Any:
    """Return DVC's view of a work tree, which waits for DVC's lock as long as it takes."""
    from dvc.repo import Repo

    return Repo(str(tree), _wait_for_lock=True)


def needs(tree: Path, targets: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return stage -> the stages it needs, in the order in which `dvc repro TARGETS` runs them.

    A target is a stage or a `foreach` group of stages; without targets, all. Raises StageError when it is neither.
    """
    from dvc.exceptions import DvcException
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with repository(tree) as repo:
        try:
            graph = get_active_graph(repo.index.graph)
        except DvcException as error:
            raise StageError(f"{tree}: {error}") from None
        known = {name_of(stage): stage for stage in repo.index.stages}
        chosen = []
        for target in targets or [name for name, stage in known.items() if stage.cmd]:
            found = [stage for name, stage in known.items() if name == target or name.startswith(f"{target}@")]
            if not found:
                raise StageError(f"{target}: no such stage; have: {', '.join(known)}")
            chosen += found
        order = plan_repro(graph, chosen)
        return {name_of(s): sorted(name_of(n) for n in graph.successors(s)) for s in order}


def name_of(stage: Any) -> str:
    """Return how DVC calls a stage in the top folder of its work tree: `train`, `data.dvc`, `sub/dvc.yaml:train`."""
    path = Path(stage.path_in_repo).as_posix()
    name = getattr(stage, "name", None)
    if not name:
        return path
    return str(name) if path == "dvc.yaml" else f"{path}:{name}"


def address(tree: Path, name: str) -> str:
    """Return a stage as a target for DVC, whatever the current folder is."""
    return str(tree / name) if ":" in name or name.endswith(".dvc") else f"{tree / 'dvc.yaml'}:{name}"


def changed(tree: Path, name: str) -> bool:
    """Say whether `dvc repro` would run a stage: its command, parameters, dependencies or outputs are not as locked."""
    with repository(tree) as repo, repo.lock:
        return any(stage.changed() for stage in repo.stage.collect(address(tree, name)))


def locked(tree: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the entries of some stages in `dvc.lock`, as far as they are there."""
    stages = _read(tree)
    return {name: stages[name] for name in names if name in stages}


def lock(tree: Path, entries: dict[str, Any]) -> None:
    """Put entries into `dvc.lock`, as DVC does: in place, new ones at the end."""
    from dvc.utils.serialize import modify_yaml

    with repository(tree) as repo, repo.lock, modify_yaml(str(tree / LOCK)) as data:
        data.setdefault("schema", "2.0")
        data.setdefault("stages", {}).update(entries)


def settle(tree: Path, before: Sequence[str], order: Iterable[str]) -> None:
    """Bring the entries of `dvc.lock` into the order of `dvc repro`: as before, then new ones as they would run.

    Stages that run at the same time end in any order; the file must not depend on it.
    """
    from dvc.utils.serialize import modify_yaml

    now = list(_read(tree))
    wanted = [n for n in before if n in now] + [n for n in order if n in now and n not in before]
    if now == wanted:
        return
    with repository(tree) as repo, repo.lock, modify_yaml(str(tree / LOCK)) as data:
        stages = data["stages"]
        data["stages"] = {n: stages[n] for n in [*wanted, *(n for n in now if n not in wanted)]}


def names_locked(tree: Path) -> list[str]:
    """Return the stages in `dvc.lock`, in its order."""
    return list(_read(tree))


def _read(tree: Path) -> dict[str, Any]:
    import yaml

    try:
        return dict(yaml.safe_load((tree / LOCK).read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        return {}
