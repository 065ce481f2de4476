"""Writes docs/reference/ anew from the docstrings, the schema of params.yaml and the command's help: `make docs`."""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines import evaluation, tasks
from pipelines.check import schema
from pipelines.files import write_file
from registry import cli

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs`; change the docstrings instead. -->\n"


def pages() -> dict[str, str]:
    """Return every page of the reference: name -> Markdown."""
    return {
        "command.md": command(),
        "params.md": params(),
        "stages.md": stages(),
        "metrics.md": metrics(),
        "modules.md": modules(),
    }


def command() -> str:
    """Return the page of `quantmill`, from its parser."""
    parser = cli.parser()
    lines = ["# The command `quantmill`", "", *(cli.__doc__ or "").strip().splitlines(), ""]
    lines += ["`--json` answers with one JSON object a line.", ""]
    (actions,) = parser._subparsers._group_actions  # type: ignore[union-attr]
    helps = {a.dest: a.help for a in actions._choices_actions}  # type: ignore[attr-defined]
    for name, sub in actions.choices.items():  # type: ignore[union-attr]
        lines += [f"## quantmill {name}", "", f"{helps[name][0].upper()}{helps[name][1:]}.", ""]
        rows = [(_words(a), a.help or "") for a in sub._actions if not isinstance(a, argparse._HelpAction)]
        if rows:
            lines += ["| argument | |", "| --- | --- |", *(f"| `{w}` | {_cell(h)} |" for w, h in rows), ""]
    return "\n".join(lines)


def _words(action: argparse.Action) -> str:
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = str(action.metavar or action.dest.upper())
    if action.option_strings:
        return action.option_strings[0] + (f" {value}" if action.nargs != 0 else "")
    return f"[{value}]" if action.nargs in ("?", "*") else value


def params() -> str:
    """Return the page of `params.yaml`, from its JSON Schema."""
    found = schema()
    lines = [
        "# params.yaml",
        "",
        "Every value that changes a result; editors complete it from `params.schema.json`.",
        "",
    ]
    lines += _table(found, found)
    for name, entry in found["properties"].items():
        resolved = _resolve(entry, found)
        if name in ("teacher", "student"):
            if name == "teacher":
                lines += ["## teacher, student", "", "`family` names a file of `pipelines/models/`.", ""]
                for choice in entry["oneOf"]:
                    lines += [f"### family: {choice['properties']['family']['const']}", "", *_table(choice, found)]
            continue
        if "properties" in resolved:
            lines += [f"## {name}", "", *_doc(resolved), *_table(resolved, found)]
            for key, inner in resolved["properties"].items():
                deep = _resolve(inner, found)
                if "properties" in deep:
                    lines += [f"### {name}.{key}", "", *_doc(deep), *_table(deep, found)]
                for choice in inner.get("oneOf", []):
                    (tag,) = [p["const"] for p in choice["properties"].values() if "const" in p]
                    lines += [f"### {name}.{key}: {tag}", "", *_doc(choice), *_table(choice, found)]
        elif "additionalProperties" in entry:
            deep = _resolve(entry["additionalProperties"], found)
            lines += [f"## {name}.NAME", "", *_doc(deep), *_table(deep, found)]
    return "\n".join(lines)


def _resolve(entry: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference; of alternatives take the first that is no null."""
    for choice in (*entry.get("anyOf", []), *entry.get("allOf", [])):
        if choice.get("type") != "null":
            return _resolve(choice, whole)
    if "$ref" in entry:
        found: dict[str, Any] = whole["$defs"].get(entry["$ref"].rpartition("/")[2], {})
        return found
    return entry


def _doc(entry: dict[str, Any]) -> list[str]:
    return [" ".join(entry["description"].split()), ""] if "description" in entry else []


def _table(entry: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    rows = ["| key | value | |", "| --- | --- | --- |"]
    for key, field in entry.get("properties", {}).items():
        if "const" in field:
            continue
        optional = "" if key in entry.get("required", []) else "optional. "
        rows.append(f"| `{key}` | {_cell(_kind(field, whole))} | {_cell(optional + field.get('description', ''))} |")
    return [*rows, ""] if len(rows) > 2 else []


def _kind(field: dict[str, Any], whole: dict[str, Any]) -> str:
    """Return what a key takes, in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(choice, whole) for choice in field["anyOf"]))
    if "oneOf" in field:
        return "see below"
    if "enum" in field:
        return ", ".join(f"`{v}`" for v in field["enum"])
    if "$ref" in field or "allOf" in field:
        resolved = _resolve(field, whole)
        return _kind(resolved, whole) if "enum" in resolved else "a mapping"
    kind = field.get("type", "a value")
    bounds = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
    said = [text.format(field[key]) for key, text in bounds.items() if key in field]
    words = {"integer": "integer", "number": "number", "string": "text", "array": "list", "boolean": "true or false"}
    return " ".join([words.get(kind, {"object": "a mapping", "null": "null"}.get(kind, kind)), ", ".join(said)]).strip()


def stages() -> str:
    """Return the page of the stages, from dvc.yaml and their docstrings."""
    found = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lines = ["# The stages", "", "In the order of `dvc.yaml`. `@T` runs once for each target.", ""]
    for name, stage in found.items():
        body = stage.get("do", stage)
        words = body["cmd"].split()
        module = words[2].replace(".", "/") + ".py"
        lines += [f"## {name}{'@T' if 'foreach' in stage else ''}", "", f"{body['desc']}. In `{module}`:", ""]
        lines += [f"> {line}".rstrip() for line in _main(ROOT / module).splitlines()]
        outs = [o if isinstance(o, str) else next(iter(o)) for o in [*body.get("outs", []), *body.get("metrics", [])]]
        depends = ", ".join(f"`{p}`" for p in body.get("params", [])) or "none"
        lines += ["", f"Parameters: {depends}. Writes: {', '.join(f'`{o}`' for o in outs)}.", ""]
    return "\n".join(lines)


def _main(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    return ast.get_docstring(function) or ""


def metrics() -> str:
    """Return the page of the metrics that a gate can bound."""
    names = ", ".join(f"`{tasks.load(task).METRIC}` of {task}" for task in tasks.names())
    lines = [
        "# The metrics",
        "",
        "What `validate` measures and `targets.T.gates` can bound, besides the task's own metric",
    ]
    lines += [f"({names}).", ""]
    rows = [f"| `{name}` | {_cell(text)} |" for name, text in sorted(evaluation.METRICS.items())]
    return "\n".join([*lines, "| metric | |", "| --- | --- |", *rows, ""])


def modules() -> str:
    """Return the page of the modules: each with its docstring and its public names."""
    lines = ["# The modules", ""]
    for folder in ("pipelines", "registry", "flows"):
        lines += [f"## {folder}", ""]
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            doc = ast.get_docstring(tree)
            if doc:
                lines += [f"### {path.relative_to(ROOT).as_posix()}", "", doc, "", *_names(tree)]
    return "\n".join(lines)


def _names(tree: ast.Module) -> Iterator[str]:
    found = False
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            arguments = f"({', '.join(a.arg for a in node.args.args)})" if isinstance(node, ast.FunctionDef) else ""
            yield f"- `{node.name}{arguments}`: {doc}"
            found = True
    if found:
        yield ""


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        with write_file(OUT / name) as part:
            part.write_text(NOTE + text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
