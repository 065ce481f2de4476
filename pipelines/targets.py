"""Targets: entries of `params.yaml` that name a runtime, a precision, a device and their gates."""

from types import ModuleType
from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines import runtimes
from pipelines.params import Section, parse, section
from pipelines.stage import StageError


class Bound(Section):
    """The values of a metric with which a gate is passed."""

    min: float | None = None
    max: float | None = None


# What INT8 keeps of FP32's answers at least: with less it has collapsed, as detection heads do. Each search aims at it,
# and the judge asks for it, whatever is declared.
FLOOR = {"agreement": Bound(min=0.5)}
AIMS = ("agreement", "drop_fp32", "kept_fp32", "p50_ms", "size_bytes", "speedup")  # what a search measures
# MLPerf Inference names its accuracy targets so: shares of the FP32 metric (mlcommons/inference_policies).
TIERS = {"95%": 0.95, "99%": 0.99, "99.9%": 0.999}
_TIER: Any = {"enum": list(TIERS)}


# The folder is on the other machine; nothing in the address can be taken for an option of ssh.
_ADDRESS = r"ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/[!-~]+"


class Target(Section):
    """One hardware target."""

    runtime: str = Field(description="A file of pipelines/runtimes/.")
    precision: Literal["fp32", "fp16", "int8"]
    device: str = Field(
        pattern=rf"^(cpu|{_ADDRESS})$",
        description="Where it is timed: cpu is this machine's; ssh://user@host:port/folder is another's.",
    )
    options: dict[str, Any] = Field(description="How the runtime quantizes to INT8; empty for another precision.")
    search: Literal["none", "fast", "thorough"] = Field(
        description="How many schemes of INT8 are tried; none: `options` are the scheme."
    )
    aim: dict[str, Bound] = Field(
        description="What a search has to reach on the validation split; empty without one. A tier as in `gates`.",
        json_schema_extra=lambda s: s.update(additionalProperties={"anyOf": [s["additionalProperties"], _TIER]}),
    )
    gates: dict[str, Bound] = Field(
        description="Bounds of metrics that a release must keep; for kept_fp32 and kept_teacher also a tier.",
        json_schema_extra=lambda s: s.update(additionalProperties={"anyOf": [s["additionalProperties"], _TIER]}),
    )

    @field_validator("aim", "gates", mode="before")
    @classmethod
    def _tiers(cls, gates: Any) -> Any:
        if not isinstance(gates, dict):
            return gates
        for metric, bound in gates.items():
            if isinstance(bound, str) and (bound not in TIERS or not metric.startswith("kept_")):
                raise ValueError(f"{metric}: {bound!r} is no bound; a tier ({', '.join(TIERS)}) is for kept_fp32")
        return {m: {"min": TIERS[b]} if isinstance(b, str) else b for m, b in gates.items()}


def read(name: str) -> tuple[Target, ModuleType, Any]:
    """Return a target of `params.yaml`, the module of its runtime, and its typed options.

    Raises StageError when the entry is wrong or its runtime lacks the precision.
    """
    key = f"targets.{name}"
    return check(name, section(key, Target))


def check(name: str, target: Target) -> tuple[Target, ModuleType, Any]:
    """Return what `read` returns, for an entry that is read already."""
    key = f"targets.{name}"
    runtime = runtimes.load(target.runtime, f"{key}.runtime")
    if target.precision not in runtime.PRECISIONS:
        have = ", ".join(runtime.PRECISIONS)
        raise StageError(f"params.yaml: {key}.precision: {target.runtime} has no {target.precision}; have: {have}")
    if target.precision != "int8" and target.options:
        raise StageError(f"params.yaml: {key}.options: {target.precision} takes none; write {{}}")
    if (target.search == "none") != (not target.aim):
        what = "a search needs one, such as {drop_fp32: {max: 0.5}}" if not target.aim else "no search; write {}"
        raise StageError(f"params.yaml: {key}.aim: {what}")
    if target.search != "none" and target.precision != "int8":
        raise StageError(f"params.yaml: {key}.search: {target.precision} has one scheme; write none")
    if target.search != "none" and runtime.INSTEAD:
        raise StageError(f"params.yaml: {key}.search: {target.runtime} does not run here, to be timed; write none")
    if target.device != "cpu" and runtime.INSTEAD:
        raise StageError(f"params.yaml: {key}.device: {target.runtime} is not timed; write cpu")
    for metric, bound in target.aim.items():
        if metric not in AIMS:
            raise StageError(f"params.yaml: {key}.aim.{metric}: no search measures it; have: {', '.join(AIMS)}")
        if bound.min is None and bound.max is None:
            raise StageError(f"params.yaml: {key}.aim.{metric}: bounds nothing; give it a min or a max")
    options = parse(target.options, runtime.Options, f"{key}.options") if target.precision == "int8" else None
    return target, runtime, options


def not_here(name: str, target: Target, runtime: ModuleType) -> str | None:
    """Return why a target cannot be built on this machine, and what to do; None: it can."""
    lacking = runtimes.missing(runtime)
    if not lacking:
        return None
    return (
        f"{target.runtime} needs {', '.join(lacking)}, not installed here; "
        f"run `make targets`, then `dvc repro -f quantize@{name}`"
    )
