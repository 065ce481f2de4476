"""Makes one target's artifact from the FP32 ONNX model and the frozen calibration subset."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import qat, repair, search, targets
from pipelines.calibration import Calibration
from pipelines.files import sha256_file, write_folder, write_json
from pipelines.params import section
from pipelines.search import Bench, Tried
from pipelines.stage import run
from pipelines.targets import Bound, Target

Retrain = Callable[[], tuple[Path, Calibration, list[dict[str, float]]]]


def main(
    name: str,
    data: Path,
    onnx: Path,
    calibration: Path,
    out: Path,
    teacher: Path | None = None,
    pruned: Path | None = None,
) -> None:
    """Write `out`: the artifact of target `name` in its runtime's form, and `quantize.json`, how it was made.

    Without a search the declared scheme is built, and the same inputs give the same bytes. A search measures, so
    that another machine may choose another scheme; the bytes of one scheme are the same everywhere. A target whose
    runtime is not installed gets no artifact, and stops no other: `quantize.json` says why. With `teacher` and
    `pruned`, the folders of those stages, the model can be trained for INT8; a given model has none.
    """
    target, runtime, options = targets.read(name)
    if reason := targets.not_here(name, target, runtime):
        print(f"{name}: left out: {reason}")
        with write_folder(out) as folder:
            write_json(folder / "quantize.json", {"runtime": target.runtime, "not_here": reason})
        return
    frozen = Calibration(data, calibration) if target.precision == "int8" else None
    source, precision = onnx / "pruned.onnx", str(target.precision)
    kept: Sequence[str] = ()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        when, retrain = "never", None
        if frozen and teacher and pruned:
            declared = section("qat", qat.Qat)
            when = declared.when
            retrain = partial(qat.retrain, name, data, teacher, pruned, frozen, declared, Path(scratch))
        if frozen and target.search != "none":
            with search.bench(target.runtime, runtime, target.device, source, frozen, data, onnx) as bench:
                best, record, bench = _searched(name, bench, options, target, when, retrain)
                precision, kept, source = best.precision, best.kept, bench.source
                frozen = bench.calibration if precision == "int8" else None
                options = runtime.Options(**best.options) if frozen else None
        elif retrain and when == "always":
            source, frozen, record["training"] = retrain()
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
                    **record,
                },
            )


def _searched(
    name: str, bench: Bench, options: Any, target: Target, when: str, retrain: Retrain | None
) -> tuple[Tried, dict[str, Any], Bench]:
    """Return the scheme to take, the record of the search, and the bench of the weights that it is for."""

    def say(text: str) -> None:
        print(f"{name}: {text}", flush=True)

    aim = {**targets.FLOOR, **target.aim}
    tried, record = _int8(bench, options, target.search, aim, say)
    again = bench
    # Training mends what is lost, and what mending it without training costs; it makes no scheme faster.
    plain = any(t.honest and not t.kept and t.keeps(aim, quality_only=True) for t in tried)
    needed = not plain and not any(t.honest and t.keeps(aim) for t in tried)
    if retrain and (when == "always" or (when == "if_needed" and needed)):
        say("trains the student for INT8")
        source, calibration, record["training"] = retrain()
        again = bench.retrained(source, calibration)
        more, found = _int8(again, options, target.search, aim, say)
        tried += more
        record |= found
    floats = [(p, None) for p in ("fp16", "fp32") if p in bench.runtime.PRECISIONS]
    tried += search.search(bench, floats, say)
    best, reason = search.choose(tried, aim)
    say(reason)
    table = {"tried": [t.row() for t in tried], "trade_offs": [t.row() for t in search.front(tried)]}
    return best, {**record, **table, "chosen": reason}, again if best.trained else bench


def _int8(
    bench: Bench, options: Any, far: str, aim: dict[str, Bound], say: Callable[[str], None]
) -> tuple[list[Tried], dict[str, Any]]:
    """Return what the schemes of INT8 give, repaired where all of them lose too much, and what the repair saw."""
    schemes = [("int8", scheme) for scheme in bench.runtime.candidates(options, far)]
    tried = search.search(bench, schemes, say)
    if any(t.honest and t.keeps(aim, quality_only=True) for t in tried):
        return tried, {}
    # The scheme that errs least has the fewest operators to take back.
    scheme = bench.runtime.Options(**min(tried, key=lambda t: t.error).options)
    ranked = repair.sensitivity(bench, scheme, far, say)
    repaired = repair.repair(bench, scheme, ranked, aim, say)
    return [*tried, *([repaired] if repaired else [])], {"sensitivity": [s.row() for s in ranked]}


if __name__ == "__main__":
    run(main)
