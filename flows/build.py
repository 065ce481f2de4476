"""Builds the line: one Prefect task per DVC stage, in the order that DVC gives.

python -m flows.build [--target STAGE] [--set KEY=VALUE] [--tree NAME] [--pool NAME | --dask ADDRESS]
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph, remote, report, run, tree
from flows.report import Outcome
from pipelines import params
from pipelines.flow import Flow
from pipelines.stage import StageError


@dataclass(frozen=True)
class Job:
    """What all stages of one run share. `work` runs one stage, here or elsewhere; it raises StageError."""

    tree: Path
    settings: Flow
    work: Callable[[str], None]


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, job: Job) -> Outcome:
    """Run a stage unless DVC says that nothing changed. Raises StageError."""
    start = time.monotonic()
    if not graph.changed(job.tree, name):
        return Outcome(name, "unchanged", 0.0)
    job.work(name)
    return Outcome(name, "ran", time.monotonic() - start)


@flow(name="build", validate_parameters=True, persist_result=False)
def build(
    targets: list[str] | None = None,
    overrides: list[str] | None = None,
    checkout: str = "",
    fetch: bool = False,
    wait: float = 0,
    pool: str = "",
    dask: str = "",
) -> State[Any]:
    """Bring the line of the current folder, or its `targets`, up to date.

    Args:
        targets: stages, as `dvc repro` takes them; without, all.
        overrides: changes of `params.yaml`, such as `prune.ratio=0.5`; kept as a DVC experiment.
        checkout: build in a git work tree of this name under `.quantmill/trees` and not in the folder itself.
        fetch: bring that checkout to what the branch is upstream.
        wait: seconds to wait while another flow works in the same work tree.
        pool: run the stages on the workers of this work pool.
        dask: run the stages on the Dask cluster whose scheduler has this address.
    """
    root = Path.cwd()
    try:
        place = tree.place(root, checkout, overrides or [], fetch, flow_run.name or "", wait)
        with place as work, remote.sender(pool, dask) as send:
            return bring_up_to_date(root, work, targets or [], overrides or [], send)
    except StageError as error:
        return Failed(message=str(error))


def bring_up_to_date(
    root: Path, work: Path, targets: Sequence[str], overrides: Sequence[str], send: remote.Send | None
) -> State[Any]:
    """Run what DVC finds changed in a work tree of `root`, here or where `send` says; return the flow's state.

    Raises StageError when nothing could be started. A stage that fails stops those that need it, and no others.
    """
    settings = params.section("flow", Flow, work / params.PARAMS)
    needs = graph.needs(work, targets)
    before = graph.names_locked(work)
    one = remote.elsewhere(root, work, needs, overrides, send) if send else _here(root, work, settings)
    outcomes = _stages(needs, Job(work, settings, one))
    graph.settle(work, before, needs)
    ran = [o for o in outcomes if o.what == "ran"]
    failed = [o for o in outcomes if o.what == "failed"]
    experiment = tree.save(work, list(needs)) if work != root and ran and not failed else ""
    report.publish(work, outcomes, experiment)
    message = report.line(outcomes, experiment)
    return Failed(message=message) if failed else Completed(message=message)


def _stages(needs: dict[str, list[str]], job: Job) -> list[Outcome]:
    """Submit every stage, each after those it needs; return what became of them, in DVC's order."""
    futures: dict[str, Any] = {}
    one = stage.with_options(retries=job.settings.retries, retry_delay_seconds=job.settings.retry_delay)
    with ThreadPoolTaskRunner() as threads:
        for name, wanted in needs.items():
            upstream = [futures[n] for n in wanted if n in futures]
            futures[name] = threads.submit(one, {"name": name, "job": job}, wait_for=upstream)
        for future in futures.values():
            future.wait()
    return [_outcome(name, future.state) for name, future in futures.items()]


def _outcome(name: str, state: State[Any]) -> Outcome:
    if state.is_completed():
        found: Outcome = state.result()
        return found
    if state.name == "NotReady":
        return Outcome(name, "not run", 0.0)
    error = state.result(raise_on_failure=False)
    return Outcome(name, "failed", 0.0, str(error) if isinstance(error, Exception) else state.message or state.name)


def _here(root: Path, work: Path, settings: Flow) -> Callable[[str], None]:
    """Return how a stage runs on this machine."""
    room = run.Room(settings)
    more = tree.environment(root, work)

    def here(name: str) -> None:
        with room.take(name):
            run.execute(work, name, settings.seconds(name), get_run_logger().info, more)

    return here


def main() -> None:
    """Run the flow from the command line. Ends with 1 and one line on standard error when a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.build", description=build.description)
    parser.add_argument("--target", action="append", metavar="STAGE", help="as `dvc repro` takes them; without, all")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change params.yaml, as a DVC experiment")
    parser.add_argument("--tree", default="", metavar="NAME", help="build in a checkout of its own")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="while another flow is in this tree")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--pool", default="", metavar="NAME", help="run stages on the workers of a Prefect work pool")
    where.add_argument("--dask", default="", metavar="ADDRESS", help="run stages on the Dask cluster at this address")
    options = parser.parse_args()
    try:
        report.answering()
        params.section("flow", Flow)
        graph.needs(Path.cwd(), options.target or [])
        done = build(
            options.target, options.set, options.tree, False, options.wait, options.pool, options.dask,
            return_state=True,
        )  # fmt: skip
        if not done.is_completed():
            raise StageError(done.message or done.name)
    except StageError as error:
        print(f"build: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    print(done.message)


if __name__ == "__main__":
    main()
