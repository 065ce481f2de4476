"""Checks the whole of `params.yaml`, and that this machine can run it, before any stage does."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines import evaluation, formats, models, params, prepare, project, remote, runtimes, tasks, training
from pipelines.check_data import Contract
from pipelines.data import Input
from pipelines.distill import Distill
from pipelines.export import Export
from pipelines.files import to_json, write_file, write_json
from pipelines.flow import Flow
from pipelines.params import Section
from pipelines.prune import Prune
from pipelines.qat import Qat
from pipelines.ranges import Calibrate
from pipelines.stage import StageError, run
from pipelines.targets import Target, not_here
from pipelines.targets import check as check_target

SCHEMA = Path("params.schema.json")
GIVEN = "onnx"  # the family of finished models
TRAINING = ("threads", "augment", "teacher", "train", "distill", "prune", "qat")


class Params(Section):
    """The whole of `params.yaml`."""

    quantmill: str | None = Field(
        default=None, description="In a project of its own: the code that runs the line. Other code runs it anew."
    )
    project: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Name of the project in the model registry.")
    task: str = Field(description="A folder of pipelines/tasks/.")
    seed: int = Field(ge=0)
    threads: int | None = Field(
        default=None, ge=1, description="Threads of training; another number gives other weights."
    )
    data: prepare.Data
    contract: Contract
    input: Input
    augment: training.Augment | None = None
    teacher: dict[str, Any] | None = Field(
        default=None, description="A file of pipelines/models/, as `family`, and its options."
    )
    train: training.Schedule | None = None
    student: dict[str, Any] = Field(description="A file of pipelines/models/, as `family`, and its options.")
    distill: Distill | None = None
    prune: Prune | None = None
    qat: Qat | None = None
    calibrate: Calibrate
    measure: evaluation.Measure
    export: Export
    flow: Flow
    targets: dict[str, Target] = Field(min_length=1, description="Hardware targets, by name.")


def main(path: Path, out: Path) -> None:
    """Write `out`, always the same: stages that depend on it run after the check, but not because of it.

    Says which targets this machine lacks the packages of: the line goes on without them. Raises StageError with one
    line for each mistake in the file at `path`.
    """
    if mistakes := check(path):
        raise StageError("\n".join(mistakes))
    found = params.parse(params.read(path), Params, "", path).targets
    for name, target in found.items():
        if reason := not_here(name, target, runtimes.load(target.runtime)):
            print(f"check: target {name} is left out: {reason}")
        elif target.device != "cpu" and (reason := remote.lacking(target.device, target.runtime)):
            print(f"check: target {name} cannot be measured: {reason}")
    write_json(out, {"checked": True})


def check(path: Path) -> list[str]:
    """Return every mistake in the file, one line each: where, what is wrong, what to do."""
    try:
        found = params.parse(params.read(path), Params, "", path)
    except StageError as error:
        return str(error).splitlines()
    checks = [
        lambda: _code(found.quantmill),
        lambda: tasks.load(found.task),
        lambda: prepare.source(found.data),
        lambda: _training(found),
        lambda: models.options(found.student, "student"),
        *(lambda name=name, target=target: _target(name, target, found.task) for name, target in found.targets.items()),
    ]
    mistakes = []
    for one in checks:
        try:
            one()
        except StageError as error:
            mistakes += str(error).splitlines()
    return list(dict.fromkeys(mistakes))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `params.yaml`, with the options of every family, format and runtime."""
    found = Params.model_json_schema()
    families = {n: models.options_of(n) for n in models.names()}
    found["properties"]["teacher"] = {
        "description": found["properties"]["teacher"]["description"],
        **_choices("family", {n: o for n, o in families.items() if n != GIVEN}),
    }
    found["properties"]["student"] |= _choices("family", families)
    student = {"properties": {"student": {"properties": {"family": {"const": GIVEN}}}}}
    found |= {"if": student, "else": {"required": list(TRAINING)}}
    sources = _choices("format", {n: formats.load(n).Options for n in formats.names()})
    found["$defs"]["Data"]["properties"]["source"] |= sources
    found["$defs"]["Target"]["properties"]["runtime"]["enum"] = runtimes.names()
    found["$defs"]["Target"]["properties"]["gates"]["propertyNames"] = {"enum": sorted(_metrics(*tasks.names()))}
    found["properties"]["task"]["enum"] = tasks.names()
    return found


def _code(declared: str | None) -> None:
    """Raise StageError when another code is installed than the one that the file declares."""
    if declared is not None and declared != (installed := project.identity()):
        raise StageError(
            f"params.yaml: quantmill: is {declared}, installed is {installed}; "
            "write the installed one to run the line anew with it"
        )


def _training(found: Params) -> None:
    """Raise StageError unless the sections that train are there, all or, for a given model, none."""
    given = found.student.get("family") == GIVEN
    there = {key: getattr(found, key) is not None for key in TRAINING}
    if given and any(there.values()):
        keys = ", ".join(key for key in TRAINING if there[key])
        raise StageError(
            f"params.yaml: student.family: {GIVEN} is a finished model, so nothing uses {keys}; take it out"
        )
    if given and (found.student.get("boxes") is not None) != (found.task == "detection"):
        wanted = "missing; say where and what its boxes are" if found.task == "detection" else "gives none; take it out"
        raise StageError(f"params.yaml: student.boxes: a model for {found.task}: {wanted}")
    if not given and not all(there.values()):
        lacking = [
            f"params.yaml: {key}: missing; add it (see params.schema.json)" for key in TRAINING if not there[key]
        ]
        raise StageError("\n".join(lacking))
    if found.teacher is not None:
        models.options(found.teacher, "teacher")


def _target(name: str, target: Target, task: str) -> None:
    check_target(name, target)
    known = _metrics(task)
    for metric, bound in target.gates.items():
        if metric not in known:
            raise StageError(
                f"params.yaml: targets.{name}.gates.{metric}: no such metric; have: {', '.join(sorted(known))}"
            )
        if bound.min is None and bound.max is None:
            raise StageError(f"params.yaml: targets.{name}.gates.{metric}: bounds nothing; give it a min or a max")


def _metrics(*names: str) -> set[str]:
    return {*evaluation.METRICS, *(tasks.load(name).METRIC for name in names)}


def _choices(key: str, options: dict[str, type[Section]]) -> dict[str, Any]:
    choices = []
    for name, model in options.items():
        one = model.model_json_schema()
        one["properties"] = {key: {"const": name}, **one.get("properties", {})}
        one["required"] = [key, *one.get("required", [])]
        choices.append(one)
    return {"oneOf": choices}


if __name__ == "__main__":
    if sys.argv[1:] == ["--schema"]:
        with write_file(SCHEMA) as part:
            part.write_text(to_json(json.loads(json.dumps(schema()))), encoding="utf-8")
    else:
        run(main)
