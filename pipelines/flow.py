"""How the flow runs the stages. Nothing here changes a result, so no stage depends on it."""

from pydantic import Field

from pipelines.params import Section


class Flow(Section):
    """The section `flow` of `params.yaml`, which `flows/` reads."""

    parallel: int = Field(ge=1, description="Stages at the same time on one machine, at most one per processor.")
    alone: list[str] = Field(description="Stages that measure time: nothing runs beside them on their machine.")
    retries: int = Field(ge=0, description="How often a failed stage is tried again.")
    retry_delay: float = Field(ge=0, description="Seconds before it is.")
    timeout: float = Field(gt=0, description="Seconds after which a stage is stopped, with all that it started.")
    timeouts: dict[str, float] = Field(description="The same for single stages, by name without the target.")

    def seconds(self, stage: str) -> float:
        """Return the timeout of a stage."""
        return self.timeouts.get(stage.partition("@")[0], self.timeout)
