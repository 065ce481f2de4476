"""Makes one target's artifact from the FP32 ONNX model and the frozen calibration subset."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines import repair, search, targets
from pipelines.calibration import Calibration
from pipelines.files import sha256_file, write_folder, write_json
from pipelines.stage import run
from pipelines.targets import Target


def main(name: str, data: Path, onnx: Path, calibration: Path, out: Path) -> None:
    """Write `out`: the artifact of target `name` in its runtime's form, and `quantize.json`, how it was made.

    Without a search the declared scheme is built, and the same inputs give the same bytes. A search measures, so
    that another machine may choose another scheme; the bytes of one scheme are the same everywhere. A target whose
    runtime is not installed gets no artifact, and stops no other: `quantize.json` says why.
    """
    target, runtime, options = targets.read(name)
    if reason := targets.not_here(name, target, runtime):
        print(f"{name}: left out: {reason}")
        with write_folder(out) as folder:
            write_json(folder / "quantize.json", {"runtime": target.runtime, "not_here": reason})
        return
    frozen = Calibration(data, calibration) if target.precision == "int8" else None
    source = onnx / "pruned.onnx"
    precision: str = target.precision
    kept: Sequence[str] = ()
    found: dict[str, Any] = {}
    if frozen and target.search != "none":
        with search.bench(target.runtime, runtime, source, frozen, data, onnx) as bench:
            precision, options, kept, found = _searched(name, bench, runtime, options, target)
        frozen = frozen if precision == "int8" else None
    with write_folder(out) as folder:
        done = runtime.quantize(source, frozen, precision, options, folder, kept)
        write_json(
            folder / "quantize.json",
            {
                "runtime": target.runtime,
                "precision": precision,
                "scheme": done,
                "kept": list(kept),
                "source": sha256_file(source),
                "calibration": frozen.digest if frozen else None,
                **found,
            },
        )


def _searched(
    name: str, bench: search.Bench, runtime: ModuleType, options: Any, target: Target
) -> tuple[str, Any, Sequence[str], dict[str, Any]]:
    """Return precision, options and kept operators of the scheme to take, and the record of the search."""

    def say(text: str) -> None:
        print(f"{name}: {text}", flush=True)

    tried = search.search(bench, runtime.candidates(options, target.search), say)
    record: dict[str, Any] = {}
    aim = {**targets.FLOOR, **target.aim}
    int8 = [t for t in tried if t.precision == "int8"]
    if not any(t.honest and t.keeps(aim, quality_only=True) for t in int8):
        # The scheme that errs least has the fewest operators to take back.
        scheme = runtime.Options(**min(int8, key=lambda t: t.error).options)
        ranked = repair.sensitivity(bench, scheme, target.search, say)
        record["sensitivity"] = [s.row() for s in ranked]
        if repaired := repair.repair(bench, scheme, ranked, aim, say):
            tried.insert(len(int8), repaired)
    best, reason = search.choose(tried, aim)
    say(reason)
    record |= {"tried": [t.row() for t in tried], "trade_offs": [t.row() for t in search.front(tried)]}
    scheme = runtime.Options(**best.options) if best.precision == "int8" else None
    return best.precision, scheme, best.kept, {**record, "chosen": reason}


if __name__ == "__main__":
    run(main)
