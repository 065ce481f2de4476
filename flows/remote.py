"""Runs stages on other machines: clones that share the DVC remote and nothing else.

A worker gets what a stage needs as entries of `dvc.lock`, pulls the files behind them, runs the stage, pushes what
it made, and answers with the stage's own entry. The flow puts that into its `dvc.lock` and pulls the files.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import graph, run, tree
from pipelines import params
from pipelines.files import write_file
from pipelines.flow import Flow
from pipelines.stage import StageError

Entries = dict[str, Any]
Send = Callable[[dict[str, Any]], Entries]
POLL_SECONDS = 2.0
CHECKOUTS = 64  # of one clone at the same time


def work(name: str, commit: str, overrides: list[str], needs: Entries) -> Entries:
    """Run a stage in a checkout of the clone that is the current folder; return its entry in `dvc.lock`.

    `needs` are the entries of the stages whose outputs it reads. Raises StageError.
    """
    root = Path.cwd()
    tree.have(root, commit)
    with _free(root, name) as place:
        tree.check_out(root, place, commit)
        if overrides:
            tree.override(place, overrides)
        with write_file(place / graph.LOCK) as part:
            part.write_text(json.dumps({"schema": "2.0", "stages": needs}), encoding="utf-8")  # YAML reads JSON
        exchange("pull", place, graph.needs(place, [name])[name])
        settings = params.section("flow", Flow, place / params.PARAMS)
        run.execute(place, name, settings.seconds(name), get_run_logger().info, tree.environment(root, place))
        exchange("push", place, [name])
        return graph.locked(place, [name])


@task(name="stage elsewhere", task_run_name="{name} elsewhere", cache_policy=NO_CACHE, persist_result=False)
def work_by_dask(name: str, commit: str, overrides: list[str], needs: Entries) -> Entries:
    """Run a stage in the clone in which a Dask worker was started."""
    return work(name, commit, overrides, needs)


@flow(name="stage", persist_result=False)
def stage(name: str, commit: str, overrides: list[str], needs: dict[str, Any]) -> None:
    """Run one stage of a build in the clone of a worker; the flow `build` asks for it."""
    from prefect.artifacts import Artifact

    made = work(name, commit, overrides, needs)
    Artifact(type="result", key="lock", description=f"What {name} made", data=made).create()


def elsewhere(
    root: Path, place: Path, needs: dict[str, list[str]], overrides: Sequence[str], send: Send
) -> Callable[[str], None]:
    """Return how a stage runs on another machine. Raises StageError when a worker could not have the same files."""
    changes = [line[3:] for line in tree.git(root, "status", "--porcelain", "--untracked-files=no").splitlines()]
    if changes := [c for c in changes if c != graph.LOCK]:
        raise StageError(f"{', '.join(changes)}: not committed; workers build a commit, so commit and push them first")
    commit = tree.git(place, "rev-parse", "HEAD")
    offered: set[str] = set()
    door = Lock()

    def there(name: str) -> None:
        with door:
            wanted = [n for n in needs[name] if n not in offered]
            exchange("push", place, wanted)
            offered.update(wanted)
        order = {"name": name, "commit": commit, "overrides": list(overrides)}
        entries = send({**order, "needs": graph.locked(place, needs[name])})
        graph.lock(place, entries)
        exchange("pull", place, [name])
        offered.add(name)

    return there


@contextmanager
def sender(pool: str, dask: str) -> Iterator[Send | None]:
    """Yield what hands a stage to a work pool or to Dask and waits for its entry; None when neither is wanted."""
    if pool:
        yield lambda order: _by_pool(pool, order)
    elif dask:
        from prefect_dask.task_runners import DaskTaskRunner

        with DaskTaskRunner(address=dask) as runner:
            yield lambda order: runner.submit(work_by_dask, order).result()
    else:
        yield None


def exchange(direction: str, place: Path, stages: Sequence[str]) -> None:
    """Push or pull the outputs of some stages of a work tree, as its `dvc.lock` has them. Raises StageError."""
    from dvc.exceptions import DvcException

    if not stages:
        return
    try:
        with graph.repository(place) as repo:
            targets = [graph.address(place, name) for name in stages]
            if direction == "push":
                repo.push(targets=targets)
            else:
                repo.pull(targets=targets, force=True)
    except DvcException as error:
        raise StageError(f"dvc {direction} {' '.join(stages)}: {error}") from error


def _by_pool(pool: str, order: dict[str, Any]) -> Entries:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    name = order["name"]
    try:
        made = run_deployment(f"stage/{pool}", parameters=order, timeout=0, flow_run_name=name)
    except ObjectNotFound:
        raise StageError(f"--pool {pool}: no deployment 'stage/{pool}'; run `prefect deploy --all`") from None
    with get_client(sync_client=True) as client:
        ended = _await(client, pool, made.id)
        if not ended.state.is_completed():
            raise StageError(ended.state.message or f"{name}: {ended.state.name}")
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[made.id]))
        (artifact,) = client.read_artifacts(artifact_filter=wanted)
        entries: Entries = json.loads(artifact.data)
        return entries


def _await(client: Any, pool: str, run_id: UUID) -> Any:
    """Wait for a flow run to end, and return it. One whose worker is gone has crashed: nobody else would say so."""
    from prefect.states import Crashed

    while True:
        found = client.read_flow_run(run_id)
        if found.state.is_final():
            return found
        worker = found.labels.get("prefect.worker.name")
        if worker and not found.state.is_scheduled():
            online = {w.name for w in client.read_workers_for_work_pool(pool) if w.status == "ONLINE"}
            if worker not in online:
                message = f"{found.name}: its worker '{worker}' is gone"
                client.set_flow_run_state(run_id, Crashed(message=message), force=True)
        time.sleep(POLL_SECONDS)


@contextmanager
def _free(root: Path, who: str) -> Iterator[Path]:
    """Yield a checkout of a clone in which nobody works; a worker may run several stages at the same time."""
    with ExitStack() as held:
        for number in range(CHECKOUTS):
            place = root / tree.LOCAL / "trees" / f"work-{number}"
            with suppress(tree.Busy):
                held.enter_context(tree.alone(place, who, 0))
                yield place
                return
    raise StageError(f"{root}: {CHECKOUTS} stages run here already; start its worker with --limit")
