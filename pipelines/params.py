"""Reads `params.yaml` into typed sections. The sections themselves stand beside the stages that use them."""

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipelines.stage import StageError, UnansweredError

PARAMS = Path("params.yaml")


class Section(BaseModel):
    """A part of `params.yaml`: frozen, strict, and closed to keys that it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML that reads `1e-3` as a number, as YAML 1.2 and DVC do, and refuses a key given twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [loader.construct_object(k) for k, _ in node.value if k.tag != "tag:yaml.org,2002:merge"]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read(path: Path = PARAMS) -> dict[str, Any]:
    """Return the whole file as plain data.

    Raises StageError when the file is missing, is not YAML, or is not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except FileNotFoundError:
        raise UnansweredError(f"{path}: no such file; run this in the project's folder") from None
    except UnicodeDecodeError:
        raise StageError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise StageError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(value, dict):
        raise StageError(f"{path}: holds no mapping; it should start with 'project: NAME'")
    return value


def section(key: str, model: type[S], path: Path = PARAMS) -> S:
    """Return the part of the file under `key` (dots go deeper) as `model`.

    Raises StageError that names the file, the key and the fix.
    """
    value: Any = read(path)
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise StageError(f"{path}: {key}: missing; add it (see params.schema.json)")
        value = value[name]
    return parse(value, model, key, path)


def value(key: str, path: Path = PARAMS) -> Any:
    """Return one plain value of the file, such as `seed`. Raises StageError when it is missing."""
    found = read(path)
    if key not in found:
        raise StageError(f"{path}: {key}: missing; add it (see params.schema.json)")
    return found[key]


def parse(value: Any, model: type[S], key: str, path: Path = PARAMS) -> S:
    """Return plain data as `model`. Raises StageError with one line per mistake."""
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        details = error.errors()
        meant = {(*d["loc"][:-1], near) for d in details if (near := _near(d, model))}
        lines = [explain(d, model, key) for d in details if not (d["type"] == "missing" and d["loc"] in meant)]
        raise StageError("\n".join(f"{path}: {line}" for line in lines)) from None
    except TypeError as error:
        raise StageError(f"{path}: {key}: {error}; write it as text in quotes") from None


def explain(detail: ErrorDetails, model: type[BaseModel], key: str = "") -> str:
    """Return one pydantic error as `key: what is wrong; what to do`."""
    loc = [str(part) for part in detail["loc"] if not str(part).startswith("function-")]
    where = ".".join([key, *loc] if key else loc)
    if detail["type"] == "extra_forbidden":
        near = _near(detail, model)
        hint = f"did you mean '{near}'?" if near else "have: " + ", ".join(sorted(_fields_at(model, loc[:-1])))
        return f"{where}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{where}: missing; add it (see params.schema.json)"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if detail["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message} (is {json.dumps(detail['input'], default=str)})"


def _near(detail: ErrorDetails, model: type[BaseModel]) -> str | None:
    """Return the known key that an unknown one is most like, if any."""
    if detail["type"] != "extra_forbidden":
        return None
    loc = [str(part) for part in detail["loc"]]
    return next(iter(difflib.get_close_matches(loc[-1], _fields_at(model, loc[:-1]), n=1)), None)


def _fields_at(model: type[BaseModel], loc: list[str]) -> list[str]:
    current: Any = model
    for name in loc:
        field = getattr(current, "model_fields", {}).get(name)
        if field is None:
            continue
        current = field.annotation
        for argument in getattr(current, "__args__", ()):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                current = argument
    return list(getattr(current, "model_fields", {}))
