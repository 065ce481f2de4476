"""Puts verdicts and numbers into words, as the report of a build shows them."""

from typing import Any


def headline(verdicts: list[str]) -> str:
    """Return the verdict on the whole build in one sentence."""
    count = len(verdicts)
    passed = verdicts.count("passed")
    if not count:
        return "No target has been measured yet."
    if passed == count:
        return "The target passed its gates." if count == 1 else f"All {count} targets passed their gates."
    rest = [f"{verdicts.count(v)} {v}" for v in ("failed", "inconclusive", "not judged") if v in verdicts]
    return f"{passed} of {count} targets passed; {', '.join(rest)}."


def sentence(metrics: dict[str, Any]) -> str:
    """Return in plain words what a target gained and lost: against the teacher, or the given model where none is."""
    against, name = ("teacher", "teacher") if metrics.get("drop_teacher") is not None else ("fp32", "FP32 model")
    parts = []
    if smaller := metrics.get("compression"):
        parts.append(times(smaller, "smaller", "larger"))
    if faster := metrics.get("speedup_teacher" if against == "teacher" else "speedup"):
        parts.append(times(faster, "faster", "slower"))
    text = f"{', '.join(parts)} than the {name}" if parts else "Size and speed could not be measured here"
    return f"{text}, {points(metrics, f'drop_{against}')}."


def points(metrics: dict[str, Any], key: str) -> str:
    """Return a drop in words: how many points down or up, with half of its interval."""
    value, low, high = (metrics.get(f"{key}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "accuracy not measured here"
    reach = f" (±{(high - low) / 2:.2f})" if low is not None and high is not None else ""
    return f"{abs(value):.2f} points {'up' if round(value, 2) < 0 else 'down'}{reach}"


def signed(metrics: dict[str, Any], key: str) -> str:
    """Return a drop as points gained (+) or lost (-), with half of its interval."""
    value, low, high = (metrics.get(f"{key}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return "–"
    return f"{0.0 - round(value, 2):+.2f} (±{(high - low) / 2:.2f})"


def times(ratio: float, more: str, less: str) -> str:
    """Return a ratio as `8x faster`, or as `2x slower` where it is below 1."""
    ratio, word = (ratio, more) if ratio >= 1 else (1 / ratio, less)
    return f"{ratio:.0f}x {word}" if ratio >= 9.95 else f"{ratio:.1f}x {word}"


def duration(seconds: float) -> str:
    """Return a time as people say it: `4.2 s`, `3 min 10 s`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Return a share of 0 to 1 in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.2f} %"


def ms(value: float | None) -> str:
    """Return milliseconds with three digits that count; a dash for None."""
    return "–" if value is None else f"{value:.3g} ms"


def size(value: int) -> str:
    """Return bytes as MB, or as kB below a tenth of one."""
    return f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"
