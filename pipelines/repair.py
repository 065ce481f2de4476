"""Finds the operators that INT8 hurts, by measuring, and takes the fewest of them back to float."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.search import Bench, Tried, within
from pipelines.stage import StageError
from pipelines.targets import Bound

GROUPS = {"fast": 16, "thorough": 10**9}  # into how many parts the operators are divided


@dataclass(frozen=True)
class Sensitivity:
    """What is lost on the validation split when these operators alone are in INT8."""

    operators: tuple[str, ...]
    drop_fp32: float
    error: float

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        return {"operators": list(self.operators), "drop_fp32": self.drop_fp32, "error": self.error}


def sensitivity(bench: Bench, options: Any, search: str, say: Callable[[str], None]) -> list[Sensitivity]:
    """Return groups of operators, the most sensitive first.

    Each group is quantized alone: to take one back from a model that is all in INT8 shows little where two of them
    do the same damage, such as a concatenation and what reads it. Groups follow the order of the graph.
    """
    everything = bench.runtime.quantized(bench.build("int8", options) / bench.runtime.FILES[0])
    size = -(-len(everything) // GROUPS[search])
    groups = [tuple(everything[n : n + size]) for n in range(0, len(everything), size)]
    found = []
    for place, group in enumerate(groups):
        artifact = bench.build("int8", options, [name for name in everything if name not in group])
        lost = bench.answers(bench.outputs(artifact))
        found.append(Sensitivity(group, lost["drop_fp32"], lost["error"]))
        say(f"sensitivity {place + 1}/{len(groups)}: {group[0]}: error {lost['error']:.3f}")
    return sorted(found, key=lambda s: (-s.error, s.operators))


def repair(
    bench: Bench, options: Any, ranked: Sequence[Sensitivity], aim: dict[str, Bound], say: Callable[[str], None]
) -> Tried | None:
    """Return the scheme with the fewest groups in float that keeps the aim's quality, None if too little stays in INT8.

    Their number is found by bisection along the ranking; each is then tried in INT8 again, the most expensive
    first (by the multiply-adds that the runtime counts), since not all of them need float.
    """

    def enough(groups: Sequence[Sensitivity]) -> bool:
        kept = _names(groups)
        try:
            lost = bench.answers(bench.outputs(bench.build("int8", options, kept)))
        except (RuntimeError, ValueError, StageError) as error:  # a mixture that the runtime does not take
            say(f"{len(kept)} operators in float: left out: {' '.join(str(error).split())[:200]}")
            return False
        say(f"{len(kept)} operators in float: {lost['drop_fp32']:.2f} points lost")
        return within(lost, aim)

    few, many = 0, len(ranked)
    while few < many - 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(ranked[:middle]) else (middle, many)
    if many == len(ranked):  # with every operator in float nothing is left of INT8
        return None
    kept = list(ranked[:many])
    costs = _multiply_adds(bench, kept)
    for group in sorted(kept[:-1], key=lambda g: (-costs[g], g.operators)):
        if enough([g for g in kept if g != group]):
            kept.remove(group)
    tried = bench.measure(bench.build("int8", options, _names(kept)), "int8", options, _names(kept))
    say(f"{len(tried.kept)} operators stay in float: {tried.speedup:.2f} x FP32")
    return tried if tried.honest else None


def _names(groups: Sequence[Sensitivity]) -> list[str]:
    return sorted(name for group in groups for name in group.operators)


def _multiply_adds(bench: Bench, groups: Sequence[Sensitivity]) -> dict[Sensitivity, int]:
    """Return the multiply-adds of each group; runtimes name a fused operator after one of those it was made of."""
    file = bench.fp32 / bench.runtime.FILES[0]
    counted = {o.name: o.multiply_adds for o in bench.runtime.operators(file, bench.split.shape)}
    return {
        g: sum(n for name, n in counted.items() if any(name in one or one in name for one in g.operators))
        for g in groups
    }
