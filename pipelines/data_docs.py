"""The Data Docs: what Great Expectations found, as one page that needs nothing from outside."""

import html
from typing import Any

from pipelines.formats import SPLITS

LISTED = 100  # rows of the tables below the expectations
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1c2530}
h1{margin-bottom:.2rem} h2{margin-top:2rem} p{margin:.2rem 0 1rem;color:#51606f}
div{overflow-x:auto} table{border-collapse:collapse;width:100%} .narrow{width:auto}
th,td{text-align:left;padding:.45rem .7rem;border-bottom:1px solid #dde3ea;vertical-align:top;overflow-wrap:anywhere}
th{white-space:nowrap} .n{text-align:right;white-space:nowrap}
.met b{color:#1a7f37} .warn b{color:#9a6700} .error b{color:#cf222e}
.error{background:#fff1f0} .warn{background:#fff8e5}
"""


def page(info: dict[str, Any], results: list[dict[str, Any]], found: dict[str, Any]) -> str:
    """Return the page; `found` holds `counts` (split: class: images), `rejected` and `drift`."""
    met = sum(r["success"] for r in results)
    images = ", ".join(f"{info['images'][s]:,} {s}" for s in SPLITS)
    parts = [
        f"<h1>Data contract: {met} of {len(results)} expectations met</h1>",
        f"<p>{images} images; {info['rejected']:,} files left out; {len(info['classes']):,} classes; "
        f"{info['channels']} channel(s) of {info['bits']} bits. Judged by Great Expectations.</p>",
        _table(
            ["Result", "Expectation", "Wanted", "Found", "#Values", "#Unexpected", "Examples"],
            [_result(r) for r in results],
            [_state(r) for r in results],
        ),
        "<h2>Images of each class</h2>",
        _table(
            ["Class", *(f"#{split}" for split in SPLITS)],
            [[name, *(f"{found['counts'][s][name]:,}" for s in SPLITS)] for name in info["classes"][:LISTED]],
            narrow=True,
        ),
        _more(len(info["classes"])),
    ]
    if found["drift"]:
        parts += [
            "<h2>Drift against the reference</h2>",
            _table(
                ["Column", "Statistic", "#Value", "#At most"],
                [[d["column"], d["statistic"], f"{d['value']:.4f}", f"{d['max']:g}"] for d in found["drift"]],
                [d["level"] if d["value"] > d["max"] else "met" for d in found["drift"]],
                narrow=True,
            ),
        ]
    if found["rejected"]:
        rows = [[r["path"], r["reason"]] for r in found["rejected"][:LISTED]]
        parts += ["<h2>Left out</h2>", _table(["File", "Reason"], rows), _more(len(found["rejected"]))]
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}\n<title>Data contract</title><style>{STYLE}</style>\n" + "\n".join(p for p in parts if p) + "\n"


def _state(result: dict[str, Any]) -> str:
    return "met" if result["success"] else str(result["level"])


def _result(r: dict[str, Any]) -> list[str]:
    span = "–" if r["lowest"] is None else f"{r['lowest']:.4g} to {r['highest']:.4g}"
    examples = "\n".join(r["examples"]) or "–"
    return [_state(r), r["check"], r["wanted"], span, f"{r['values']:,}", f"{r['unexpected']:,}", examples]


def _table(heads: list[str], rows: list[list[str]], states: list[str] | None = None, narrow: bool = False) -> str:
    """Return a table; heads that begin with # are of numbers; the first cell is bold where a row has a state."""
    right = [' class="n"' if head.startswith("#") else "" for head in heads]
    lines = ["<tr>" + "".join(f"<th{c}>{html.escape(h.lstrip('#'))}" for h, c in zip(heads, right, strict=True))]
    for number, row in enumerate(rows):
        cells = [f"<td{c}>{html.escape(v).replace(chr(10), '<br>')}" for v, c in zip(row, right, strict=True)]
        state = f' class="{states[number]}"' if states else ""
        if states:
            cells[0] = f"<td><b>{html.escape(row[0])}</b>"
        lines.append(f"<tr{state}>" + "".join(cells))
    return f"<div><table{' class=narrow' if narrow else ''}>{''.join(lines)}</table></div>"


def _more(count: int) -> str:
    return f"<p>{count - LISTED:,} more.</p>" if count > LISTED else ""
