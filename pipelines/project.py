"""Makes a project for somebody's own data: parameters that fit them, and the line as the installed package runs it."""

import io
import math
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines import runtimes
from pipelines.files import to_json, write_file
from pipelines.stage import QUIET, StageError
from pipelines.survey import Survey, survey

TEMPLATES = Path(__file__).parent / "templates"
CODE = ("pipelines", "registry", "flows")
SIDES = {"classification": 224, "detection": 640}  # pixels of the input's edges at most, unless somebody says more
STEPS = 1200  # of training, about; few images are seen more often
NOTES = {
    "quantmill": "The code that runs the line; other code runs it anew.",
    "data": "What `prepare` reads. Images that differ in channels or bits are left out, with the reason.",
    "contract": "What the data must keep. `error` stops the line, `warn` is shown. See build/contract/docs/index.html.",
    "input": "What the model takes.",
    "augment": "Of training images: degrees, shares of the edge, and whether left and right may be swapped.",
    "teacher": "The large model: a family, and its options.",
    "train": "How the teacher is trained.",
    "student": "The small model: a family, and its options.",
    "distill": "How the student is trained under the teacher.",
    "prune": "Which share of the multiply-adds goes, and how what is left is tuned.",
    "qat": "When the student is trained for INT8: the last resort of a search whose aim nothing else keeps.",
    "calibrate": "How many images the INT8 ranges come from.",
    "targets": "One entry for each hardware. A gate bounds a metric; drops are in points.",
    "measure": "How models are measured.",
    "export": "What a bundle carries besides the model. `about` says what papers need (see the schema).",
}
OVERLAP = 0.7  # IoU of boxes of one object, for detectors that give several
COMMON = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # of ImageNet, for models of colour images
GIVEN = "The model, and what it takes and gives: no file says what it was trained with. See docs/how-to/my-model.md."


def identity() -> str:
    """Return version and content of the installed code, such as `0.1.0+fb519876`."""
    from pipelines.export import code_hash

    return f"{metadata.version('quantmill')}+{code_hash()[:8]}"


def make(folder: Path, data: Path, project: str | None, size: int | None, model: Path | None = None) -> dict[str, Any]:
    """Write a project into `folder` for the data in `data`; return what was found and chosen.

    `model`, an ONNX file, is the model itself: nothing is trained then.

    Raises StageError when a file that it writes is there already, the data are none, or git or DVC fail.
    """
    data = data.parent if data.suffix in (".yaml", ".yml") else data
    found = survey(data, _path(folder, data))
    name = project or _name(folder)
    side = size or _side(found)
    version = identity()
    given, fixed = _model(model, _path(folder, model), found) if model else (None, None)
    height, width = fixed or (side, side)
    parameters, targets = _params(found, name, (height, width), version, given)
    files = {
        "params.yaml": parameters,
        "dvc.yaml": line(given is not None),
        "params.schema.json": _schema(),
        ".gitignore": _template("gitignore"),
        ".dvcignore": _template("dvcignore"),
        "Makefile": _template("Makefile"),
        "README.md": _render("README.md", project=name, found=found, targets=targets, version=version),
    }
    for file in files:
        if (folder / file).exists():
            raise StageError(f"{folder / file}: is there already, and is not overwritten; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        with write_file(folder / file) as part:
            part.write_text(text, encoding="utf-8")
    for there, words in ((".git", ["git", "init", "-q"]), (".dvc", ["dvc", "init", "-q"])):
        if not (folder / there).exists():
            _run(folder, words)
    return {
        "project": name,
        "task": found.task,
        "format": found.source["format"],
        "path": found.source["path"],
        "classes": found.classes,
        "images": found.images,
        "channels": found.channels,
        "bits": found.bits,
        "size": height,
        "width": width,
        "given": given,
        "odd": found.odd,
        "looked": found.looked,
        "targets": targets,
    }


def describe(folder: Path, made: dict[str, Any]) -> str:
    """Return in a few lines what was found, and what to do next."""
    lines = [
        f"{made['images']:,} images of {len(made['classes'])} classes ({made['format']}), {made['channels']} "
        f"channel(s) of {made['bits']} bits; the model takes {made['size']}x{made['width']}; "
        f"targets: {', '.join(made['targets'])}",
    ]
    if made["odd"]:
        lines.append(
            f"{made['odd']} of {made['looked']} images looked at are broken or unlike the others; they will be left out"
        )
    if made["given"]:
        lines.append(
            "the model is given: set input.mean and std, student.order, scores and classes to what it was trained with"
            + (", and student.boxes to what it gives" if "boxes" in made["given"] else "")
        )
    return "\n".join([*lines, f"next: cd {folder} && quantmill check && dvc repro"])


def line(given: bool = False) -> str:
    """Return dvc.yaml for a project without the code: where stages depend on code, they depend on its identity.

    Where the model is given, the stages that train are left out of it, with all that others take from them.
    """
    import yaml

    found = yaml.safe_load((TEMPLATES / "line.yaml").read_text(encoding="utf-8"))
    if given:
        other = _given()
        for name in other["without"]:
            del found["stages"][name]
        found["stages"] |= other["stages"]
        for stage in found["stages"].values():
            body = stage.get("do", stage)
            body["cmd"] = " ".join(w for w in body["cmd"].split() if w not in other["outputs"])
            body["deps"] = [d for d in body["deps"] if d not in other["outputs"]]
            body["params"] = [p for p in body.get("params", []) if p not in other["params"]]
        curves = tuple(f"{output}/" for output in other["outputs"])
        found["plots"] = [p for p in found["plots"] if not any(str(y).startswith(curves) for y in _sources(p))]
    for stage in found["stages"].values():
        body = stage.get("do", stage)
        body["deps"] = [d for d in body["deps"] if d.split("/")[0] not in CODE]
        body["params"] = ["quantmill", *body.get("params", [])]
    text = yaml.safe_dump(found, sort_keys=False, width=110, allow_unicode=True)
    return f"# The line, as the installed Quantmill runs it. `quantmill` in params.yaml stands for its code.\n{text}"


def _given() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((TEMPLATES / "given.yaml").read_text(encoding="utf-8"))
    return found


def _sources(plot: dict[str, Any]) -> list[str]:
    """Return the files from which a plot of dvc.yaml takes its y axis."""
    return [file for body in plot.values() for file in body["y"]]


def _model(path: Path, name: str, found: Survey) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the entry `student` for an ONNX file, and the height and width of its input where they are fixed.

    What no file says, the order of the channels and classes and what boxes are, is as it mostly is.
    """
    from pipelines.adopt import facts

    known = facts(path, found.channels)
    made: dict[str, Any] = {
        "family": "onnx",
        "path": name,
        "layout": known.layout,
        "order": "rgb",
        "output": None,
        "scores": "probabilities" if known.softmax or known.sigmoid else "logits",
        "classes": None,
    }
    if found.task == "detection":
        apart = next((n for n, dims in known.outputs.items() if len(dims) == 3 and 4 in dims[1:]), None)
        if apart and len(known.outputs) > 1:  # as DETR and its kin give them
            made["output"] = next(n for n in known.outputs if n != apart)
            made["boxes"] = {"output": apart, "corners": "cxcywh", "unit": "shares", "overlap": None}
        else:  # as YOLO and its kin
            made["boxes"] = {"output": None, "corners": "cxcywh", "unit": "pixels", "overlap": OVERLAP}
    return made, known.size


def _params(
    found: Survey, project: str, size: tuple[int, int], version: str, model: dict[str, Any] | None
) -> tuple[str, list[str]]:
    """Return the built-in parameters, made to fit the data, with comments; and the targets."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    template = {"classification": "digits.yaml", "detection": "detection.yaml"}[found.task]
    everything = yaml.load((TEMPLATES / template).read_text(encoding="utf-8"))
    everything.insert(1, "quantmill", version)
    everything["project"], everything["task"] = project, found.task
    _data(everything, found)
    everything["input"].update({"height": size[0], "width": size[1]})
    train = found.splits.get("train") or max(int(found.images * 0.7), 1)
    epochs = min(max(round(STEPS * everything["train"]["batch"] / train), 5), 60)
    everything["train"]["epochs"] = everything["distill"]["schedule"]["epochs"] = epochs
    everything["prune"]["schedule"]["epochs"] = max(epochs // 2, 3)
    everything["calibrate"]["images"] = min(128, train)
    del everything["export"]["about"]  # that of the built-in data
    notes = dict(NOTES)
    if model is not None:
        for key in _given()["params"]:
            del everything[key]
        everything["student"].clear()
        everything["student"].update(model)
        everything["input"].update(
            COMMON
            if found.channels == 3 and "boxes" not in model
            else {"mean": [0.0] * found.channels, "std": [1.0] * found.channels}
        )
        if "boxes" in model:  # as YOLO and its kin shrink images
            everything["input"]["antialias"] = False
        notes["student"] = GIVEN
        everything["flow"]["timeouts"].clear()
        for target in everything["targets"].values():  # there is no teacher that it is smaller than
            del target["gates"]["compression"]
    for name in list(everything["targets"]):
        if runtimes.missing(runtimes.load(everything["targets"][name]["runtime"])):
            del everything["targets"][name]
    for key, note in notes.items():
        if key in everything:
            everything.yaml_set_comment_before_after_key(key, before=note)
    file = io.StringIO()
    yaml.dump(everything, file)
    text = re.sub(r"\n{3,}", "\n\n", file.getvalue()).replace("$schema=../../params", "$schema=params")
    return text, list(everything["targets"])


def _data(everything: Any, found: Survey) -> None:
    """Fill in what was seen of the data, and a contract that they keep with room to spare."""
    data, contract = everything["data"], everything["contract"]
    data["source"].clear()
    data["source"].update(found.source)
    data.update({"channels": found.channels, "bits": found.bits, "max_rejected": 0.05})
    data["splits"].update({"val": 0.1, "test": 0.2})
    data["splits"].ca.comment = None  # what is said of the built-in data
    data.ca.items.pop("splits", None)
    contract["edge"].update({"min": max(found.edge[0] // 2, 1), "max": found.edge[1] * 2})
    contract["channels"]["value"], contract["bits"]["value"] = found.channels, found.bits
    contract["brightness"].update({"min": 0.02, "max": 0.98})
    contract["sharpness"].update({"min": 0.0, "max": 10.0})
    contract["unreadable"]["max"] = 0.05
    share = min(found.splits.values()) / found.images if len(found.splits) == 3 else 0.1
    contract["per_class"]["min"] = max(int(found.smallest * share / 2), 1)
    if contract["boxes"]:
        contract["boxes"]["outside"].update({"level": "warn", "max": 1.0})
        contract["boxes"]["area"].update({"level": "warn", "min": 1})
    contract["balance"]["max"] = float(math.ceil(2 * found.largest / max(found.smallest, 1)))


def _side(found: Survey) -> int:
    """Return the input's edge: the median of the images', up to the next 32, at most what the task usually takes."""
    return min(max(math.ceil(found.side / 32) * 32, 32), SIDES.get(found.task, 224))


def _name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_") or "project"


def _path(folder: Path, data: Path) -> str:
    """Return how the project names its data: relative where they lie in it or beside it, else absolute."""
    folder, data = folder.resolve(), data.resolve()
    near = data.is_relative_to(folder.parent)
    return os.path.relpath(data, folder) if near else str(data)


def _schema() -> str:
    import json

    from pipelines.check import schema

    return to_json(json.loads(json.dumps(schema())))


def _template(name: str) -> str:
    return (TEMPLATES / "project" / name).read_text(encoding="utf-8")


def _render(name: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    path = values["found"].source["path"]
    return environment.from_string(_template(name)).render(path=path, **values)


def _run(folder: Path, words: list[str]) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env={**os.environ, **QUIET})
    except FileNotFoundError:
        raise StageError(f"{words[0]}: not found; install it, then run `{' '.join(words)}` in {folder}") from None
    if done.returncode:
        raise StageError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
