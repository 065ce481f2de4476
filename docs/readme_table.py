"""Writes the table of README.md anew from the metrics files of the last build: `make readme`."""

import datetime
import os
import platform
from pathlib import Path

from pipelines.files import write_file
from pipelines.summary import variants

START, END = "<!-- table: written by `make readme` from the metrics files -->\n", "<!-- /table -->"


def table(build: Path) -> str:
    """Return the variants as a Markdown table, and a line that says where and when they were measured."""
    rows = [
        "| variant | accuracy | against the teacher, points | size | p50 | speed-up | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, m, verdict in variants(build):
        change, reach = 0.0 - m["drop_teacher"], (m["drop_teacher_high"] - m["drop_teacher_low"]) / 2
        smaller = f", {m['compression']:.0f}x smaller" if m["compression"] > 1 else ""
        rows.append(
            f"| {name} | {100 * m['accuracy']:.2f} % | {change:+.2f} (±{reach:.2f}) | "
            f"{m['size_bytes'] / 1e6:.2f} MB{smaller} | {m['p50_ms']:.2f} ms | {m['speedup_teacher']:.1f}x | "
            f"{verdict} |"
        )
    machine = f"{os.cpu_count()} cores of {processor()}, {platform.system()}"
    note = (
        "Handwritten digits at 64x64 pixels, batch 1, one thread. Size: of the model file; speed-up: over the teacher "
        f"in FP32 in the same runtime, in turn in one process; ±: half of the 95 % interval. Measured on {machine}, "
        f"{datetime.date.today():%B %Y}."
    )
    return "\n".join([*rows, "", note, ""])


def processor() -> str:
    """Return the processor's name, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Replace what stands between the two marks in README.md."""
    readme = Path("README.md")
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    with write_file(readme) as part:
        part.write_text(f"{before}{START}{table(Path('build'))}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
