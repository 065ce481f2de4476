"""Builds the line when its source data changed: those that `.dvc` files name, imported or pushed by somebody."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows import graph, remote, tree
from flows.build import bring_up_to_date
from pipelines.stage import StageError


@flow(name="refresh", persist_result=False)
def refresh(checkout: str = "data", fetch: bool = True, pool: str = "", dask: str = "") -> State[Any]:
    """Look for new data, and build the line with them.

    Args:
        checkout: the git work tree under `.quantmill/trees` in which it is built; it remembers the last build.
        fetch: bring that checkout to what the branch is upstream.
        pool: run the stages on the workers of this work pool.
        dask: run the stages on the Dask cluster whose scheduler has this address.
    """
    root = Path.cwd()
    try:
        place = tree.place(root, checkout, [], fetch, flow_run.name or "", 0)
        with place as work, remote.sender(pool, dask) as send:
            found = new_data(work)
            if not found:
                return Completed(message="the data are those of the last build")
            return bring_up_to_date(root, work, [], [], send)
    except StageError as error:
        return Failed(message=str(error))


def new_data(place: Path) -> list[str]:
    """Bring the source data of a work tree up to date; return the paths that differ from those of its last build.

    Imports (`dvc import`, `dvc import-url`, also from `remote://`) are asked at their source. Raises StageError.
    """
    from dvc.exceptions import DvcException

    try:
        with graph.repository(place) as repo:
            sources = [s for s in repo.index.stages if not s.cmd]
            if imports := [graph.address(place, graph.name_of(s)) for s in sources if s.is_import]:
                repo.update(imports)
            if others := [graph.address(place, graph.name_of(s)) for s in sources if not s.is_import]:
                repo.pull(targets=others, force=True)
        with graph.repository(place) as repo, repo.lock:
            outs = [Path(o.fs_path) for s in repo.index.stages if not s.cmd for o in s.outs]
            deps = [d for s in repo.index.stages if s.cmd for d in s.deps if getattr(d, "fs_path", None)]
            new = {Path(d.fs_path) for d in deps if any(Path(d.fs_path).is_relative_to(o) for o in outs) and d.status()}
            return sorted(path.relative_to(place).as_posix() for path in new)
    except DvcException as error:
        raise StageError(f"{place}: the source data: {error}") from error
