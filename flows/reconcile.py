"""Makes what serves follow the alias `production`, on a schedule or when a webhook asks."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State

from pipelines.stage import StageError


@flow(name="reconcile", persist_result=False)
def reconcile(models: list[str] | None = None) -> State[Any]:
    """Reconcile some registered models, or all of the project in the current folder.

    A promotion that was refused ends the run as `Refused`, with the reason; what serves goes on.
    """
    from registry import reconcile as registry

    try:
        outcomes = registry.reconcile(models)
    except StageError as error:
        return Failed(message=str(error))
    lines = [
        f"{o.model}: {o.action}" + (f", version {o.version} serves" if o.version else "") + f"; {o.reason}".rstrip("; ")
        for o in outcomes
    ]
    for line in lines:
        get_run_logger().info(line)
    refused = any(o.action == "refused" for o in outcomes)
    news = [line for line, o in zip(lines, outcomes, strict=True) if o.action not in ("unchanged", "nothing")]
    return Completed(name="Refused" if refused else None, message="\n".join(news) or "nothing to do")
