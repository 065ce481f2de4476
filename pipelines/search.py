"""Tries schemes of quantization on the target itself, and takes the fastest that keeps what `aim` asks for."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import evaluation, measure
from pipelines.calibration import Calibration
from pipelines.evaluation import Outputs, TestSet
from pipelines.files import size_of
from pipelines.stage import StageError
from pipelines.targets import Bound

# A scheme is taken over one that stands before it only when it is faster by more than this share: two measurements of
# one artifact differ by less, so that the choice does not follow the noise.
MARGIN = 0.05
INT8_SHARE = 0.5  # of the multiply-adds, without which an artifact is not INT8; the judge asks for as much
QUALITY = ("drop_fp32", "kept_fp32", "agreement")  # what an aim can say of the answers; the rest is of their cost


@dataclass(frozen=True)
class Tried:
    """One scheme, and what it gave on the validation split: `error` is of the outputs, relative (root mean square)."""

    precision: str
    options: dict[str, Any]
    kept: tuple[str, ...]
    drop_fp32: float
    kept_fp32: float
    agreement: float
    error: float
    int8_share: float | None
    p50_ms: float
    speedup: float
    size_bytes: int
    trained: bool = False  # for INT8, before it was quantized

    @property
    def honest(self) -> bool:
        """Whether it is what its precision says."""
        return self.precision != "int8" or (self.int8_share or 0.0) >= INT8_SHARE

    def keeps(self, aim: dict[str, Bound], quality_only: bool = False) -> bool:
        """Return whether it keeps the bounds of an aim."""
        return within({m: v for m, v in asdict(self).items() if m in QUALITY or not quality_only}, aim)

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        return {**asdict(self), "kept": list(self.kept)}


def within(values: dict[str, Any], aim: dict[str, Bound]) -> bool:
    """Return whether values keep the bounds that an aim has for them."""
    bounds = [(values[metric], bound) for metric, bound in aim.items() if metric in values]
    return all((b.min is None or v >= b.min) and (b.max is None or v <= b.max) for v, b in bounds)


class Bench:
    """Builds artifacts of one model for one runtime in a temporary folder, and measures them beside FP32."""

    def __init__(
        self,
        name: str,
        runtime: ModuleType,
        device: str,
        source: Path,
        calibration: Calibration,
        split: TestSet,
        folder: Path,
    ) -> None:
        self.name, self.runtime, self.source, self.calibration = name, runtime, source, calibration
        self.device = device
        self.split, self.folder = split, folder
        self.count, self.trained = 0, False
        self.fp32 = self.build("fp32", None)

    def retrained(self, source: Path, calibration: Calibration) -> "Bench":
        """Return a bench of the same model with other weights; FP32 and its answers stay those of this one."""
        assert len(self.reference[0]) == len(self.inputs)  # shared with the other, so made before it
        other = copy.copy(self)
        other.source, other.calibration, other.folder = source, calibration, self.folder / "retrained"
        other.trained = True
        return other

    def build(self, precision: str, options: Any, kept: Sequence[str] = ()) -> Path:
        """Make an artifact; return its folder."""
        self.count += 1
        out = self.folder / str(self.count)
        frozen = self.calibration if precision == "int8" else None
        self.runtime.quantize(self.source, frozen, precision, options, out, kept)
        return out

    def measure(self, artifact: Path, precision: str, options: Any, kept: Sequence[str] = ()) -> Tried:
        """Return what an artifact gives: its answers, and its speed in turn with FP32 in one process."""
        file = artifact / self.runtime.FILES[0]
        outputs = self.outputs(artifact)
        pair = {"candidate": file, "twin": self.fp32 / self.runtime.FILES[0]}
        settings = self.split.measure.model_dump()
        times = measure.interleaved(self.name, pair, self.split.shape, settings, self.device)["times_ms"]
        p50 = float(np.median(times["candidate"]))
        return Tried(
            precision=precision,
            options=options.model_dump() if options else {},
            kept=tuple(kept),
            **self.answers(outputs),
            int8_share=evaluation.int8_share(self.runtime.operators(file, self.split.shape)),
            p50_ms=p50,
            speedup=1.0 if precision == "fp32" else float(np.median(times["twin"])) / p50,
            size_bytes=sum(size_of(artifact / f) for f in self.runtime.FILES),
            trained=self.trained,
        )

    def answers(self, outputs: Outputs) -> dict[str, float]:
        """Return how far outputs are from those of FP32."""
        score = self.split.task.scorer
        before, after = score(self.reference, self.split.truth)(None), score(outputs, self.split.truth)(None)
        lost = sum(float(np.square(o - r).sum()) for o, r in zip(outputs, self.reference, strict=True))
        whole = sum(float(np.square(r).sum()) for r in self.reference)
        return {
            "drop_fp32": 100 * (before - after),
            "kept_fp32": after / before if before else 1.0,
            "agreement": self.split.task.agreement(self.reference, outputs),
            "error": float(np.sqrt(lost / whole)) if whole else 0.0,
        }

    @cached_property
    def reference(self) -> Outputs:
        """The outputs of FP32 on the validation split."""
        return self.outputs(self.fp32)

    @cached_property
    def inputs(self) -> NDArray[np.float32]:
        """The validation split as the model takes it, decoded once, in a file: memory does not grow with it."""
        rows = self.split.rows
        shape = (len(rows), *self.split.shape)
        found = np.lib.format.open_memmap(self.folder / "inputs.npy", mode="w+", dtype=np.float32, shape=shape)
        for place, row in enumerate(rows):
            found[place] = self.split.preprocess(self.split.dataset.image(row))
        return found

    def outputs(self, artifact: Path) -> Outputs:
        """Return the outputs of an artifact on the validation split."""
        predict = self.runtime.load(artifact / self.runtime.FILES[0], self.split.measure.threads)
        size = self.split.measure.batch
        parts = [predict(np.array(self.inputs[n : n + size])) for n in range(0, len(self.inputs), size)]
        return [np.concatenate(output).astype(np.float32) for output in zip(*parts, strict=True)]


@contextmanager
def bench(
    name: str, runtime: ModuleType, device: str, source: Path, calibration: Calibration, data: Path, onnx: Path
) -> Iterator[Bench]:
    """Yield a bench on the validation split; what it built goes with it."""
    split = evaluation.read(data, onnx, "val")
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(name, runtime, device, source, calibration, split, Path(folder))


def search(bench: Bench, schemes: Sequence[tuple[str, Any]], say: Callable[[str], None]) -> list[Tried]:
    """Build and measure every scheme, a precision and its options; return them in that order.

    A scheme that the quantizer cannot build is said and left out. The first must be built.
    """
    found: list[Tried] = []
    for precision, options in schemes:
        try:
            tried = bench.measure(bench.build(precision, options), precision, options)
        except (RuntimeError, ValueError, StageError) as error:
            if not found:
                raise
            say(f"{describe(precision, options)}: left out: {' '.join(str(error).split())[:200]}")
            continue
        found.append(tried)
        say(f"{describe(precision, options)}: {tried.drop_fp32:.2f} points lost, {tried.speedup:.2f} x FP32")
    return found


def describe(precision: str, options: Any) -> str:
    """Return a scheme in one line."""
    return " ".join([precision, *(f"{k}={v}" for k, v in (options.model_dump() if options else {}).items())])


def choose(tried: Sequence[Tried], aim: dict[str, Bound]) -> tuple[Tried, str]:
    """Return the one to take of what was tried, and why, in a sentence.

    INT8 is taken only where it is no slower than FP32. The fastest wins; of equally fast ones INT8 before FP16 before
    FP32, since they are smaller, and of one precision that which errs least, whose order no noise changes. Where
    nothing keeps the whole aim, the bounds on quality come first.
    """
    useful = [t for t in tried if t.honest and (t.precision != "int8" or t.speedup >= 1)]
    whole = [t for t in useful if t.keeps(aim)]
    right = [t for t in useful if t.keeps(aim, quality_only=True)]
    pool = whole or right or useful or list(tried)
    best = pool[0]
    for other in pool[1:]:
        if other.speedup > best.speedup * (1 + MARGIN):
            best = other
    equals = [t for t in pool if t.precision == best.precision and best.speedup <= t.speedup * (1 + MARGIN)]
    best = min(equals, key=lambda t: t.error)
    return best, _reason(best, tried, aim, bool(whole))


def _reason(best: Tried, tried: Sequence[Tried], aim: dict[str, Bound], kept: bool) -> str:
    kept_float = f" with {len(best.kept)} operators in float" if best.kept else ""
    trained = ", trained for it" if best.trained else ""
    gave = f"{best.precision}{kept_float}{trained}: {best.drop_fp32:.2f} points lost"
    gave += f", {best.speedup:.2f} times as fast as FP32"
    if best.precision != "int8":
        gave += f"; taken since INT8 {_refusal([t for t in tried if t.precision == 'int8'], aim)}"
    return gave if kept else f"no scheme keeps the aim; the best trade-off is {gave}"


def _refusal(int8: Sequence[Tried], aim: dict[str, Bound]) -> str:
    """Return what is wrong with the INT8 that comes nearest."""
    if right := [t for t in int8 if t.honest and t.keeps(aim, quality_only=True)]:
        return f"is {max(t.speedup for t in right):.2f} times as fast as FP32"
    if honest := [t for t in int8 if t.honest]:
        return f"loses more than the aim allows, {min(t.drop_fp32 for t in honest):.2f} points at least"
    return f"runs in float: {max(t.int8_share or 0.0 for t in int8):.0%} of its multiply-adds are INT8"


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Return the best trade-offs: what nothing else beats in error and in speed at once."""

    def beats(one: Tried, other: Tried) -> bool:
        better = (one.error < other.error, one.speedup > other.speedup)
        return one.error <= other.error and one.speedup >= other.speedup and any(better)

    return [t for t in tried if not any(beats(other, t) for other in tried)]
