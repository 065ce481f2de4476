"""Plots as SVG that follows the colours of the page around it, light or dark, and needs nothing from outside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 350
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 48
LETTER, LINE = 7.4, 15  # width and height that a letter of a label takes


@dataclass(frozen=True)
class Point:
    """A variant in a plot: `y` with its interval over `x`; `kind` (fp32, or its verdict) chooses the mark."""

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both: none is further left and as high."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y, p.name)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Return y in percent over x on a log axis, with the intervals and the Pareto front, as one SVG element."""
    across = _Log([p.x for p in points])
    up = _Linear([v for p in points for v in (p.low, p.high)])
    best = front(points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)} against {escape(x_title)}">'
    ]
    for value in up.ticks:
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{value:.{up.digits}f}</text>')
    for value in across.ticks:
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}">{value:g}</text>')
    parts.append(
        f'<text class="axis middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">{escape(x_title)}</text>'
    )
    parts.append(f'<text class="axis" x="4" y="14">{escape(y_title)}</text>')
    steps = [f"{across(best[0].x):.1f},{HEIGHT - BOTTOM}"]
    for n, point in enumerate(best):
        y, end = up(point.y), across(best[n + 1].x) if n + 1 < len(best) else WIDTH - RIGHT
        steps += [f"{across(point.x):.1f},{y:.1f}", f"{end:.1f},{y:.1f}"]
    parts.append(f'<polyline class="front" points="{" ".join(steps)}"/>')
    places = [(across(p.x), up(p.y)) for p in points]
    for point, (x, _) in zip(points, places, strict=True):
        low, high = up(point.low), up(point.high)
        parts.append(
            f'<line class="reach {_class(point.kind)}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        )
    for point, (x, y) in zip(points, places, strict=True):
        said = f"{point.name}: {point.y:.2f} ({point.low:.2f} to {point.high:.2f}) at {point.x:.3g} {x_title}"
        parts.append(f"<g><title>{escape(said)}</title>{_mark(point.kind, x, y)}</g>")
    for point, (x, y), (left, base) in zip(points, places, _labels(points, places), strict=True):
        if abs(base - 4 - y) > LINE:
            edge = min(max(x, left), left + _width(point))
            near = base - 11 if base - 4 > y else base + 3
            parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{edge:.1f}" y2="{near:.1f}"/>')
        weight = " strong" if point in best else ""
        parts.append(f'<text class="label{weight}" x="{left:.1f}" y="{base:.1f}">{escape(point.name)}</text>')
    return "".join([*parts, "</svg>"])


def gate(bound: str, limit: float, value: float, low: float | None, high: float | None, result: str) -> str:
    """Return where a measured value and its interval lie against the bound of a gate, as one SVG element."""
    width, height, middle = 200, 30, 15
    ends = [limit, value, *(v for v in (low, high) if v is not None)]
    margin = 0.18 * (max(ends) - min(ends) or abs(limit) or 1)
    start, stop = min(ends) - margin, max(ends) + margin

    def place(number: float) -> float:
        return 4 + (width - 8) * (number - start) / (stop - start)

    edge = place(limit)
    left, right = (4.0, edge) if bound == "max" else (edge, width - 4.0)
    words = f"{'at most' if bound == 'max' else 'at least'} {limit:g}; measured {value:.4g}"
    parts = [
        f'<svg class="gate" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">',
        f'<rect class="allowed" x="{left:.1f}" y="3" width="{right - left:.1f}" height="{height - 6}"/>',
        f'<line class="bound" x1="{edge:.1f}" x2="{edge:.1f}" y1="1" y2="{height - 1}"/>',
    ]
    if low is not None and high is not None:
        parts.append(
            f'<line class="reach {result}" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{middle}" y2="{middle}"/>'
        )
    return "".join([*parts, _mark(result, place(value), middle), "</svg>"])


def curve(values: Sequence[float]) -> str:
    """Return values over their number as a small line, as one SVG element."""
    width, height = 120, 30
    low, high = min(values), max(values)
    span, count = (high - low) or 1, max(len(values) - 1, 1)
    points = [f"{3 + (width - 6) * n / count:.1f},{height - 4 - (height - 8) * (v - low) / span:.1f}"
              for n, v in enumerate(values)]  # fmt: skip
    said = f"from {values[0]:.4g} to {values[-1]:.4g}"
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{said}"><title>{said}</title>'
        f'<polyline points="{" ".join(points)}"/></svg>'
    )


class _Log:
    """Places values on a logarithmic axis from left to right, with ticks at 1, 2 and 5 of each decade."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        margin = max(0.12 * (high - low), 0.15)
        self.low, self.high = low - margin, high + 1.4 * margin
        decades = range(math.floor(self.low) - 1, math.ceil(self.high) + 1)
        ticks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        self.ticks = [t for t in ticks if self.low <= math.log10(t) <= self.high]
        if len(self.ticks) > 7:
            self.ticks = [t for t in self.ticks if math.log10(t) == round(math.log10(t))]

    def __call__(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - self.low) / (self.high - self.low)


class _Linear:
    """Places values on a linear axis from bottom to top, with round ticks."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        span = max(high - low, 0.5)
        step = next(s for e in range(-3, 3) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if span / s <= 5)
        self.low = low - 0.08 * span
        self.high = high + 0.08 * span
        first = math.ceil(self.low / step)
        self.ticks = [n * step for n in range(first, math.floor(self.high / step) + 1) if n * step <= 100]
        self.digits = max(0, -math.floor(math.log10(step)))

    def __call__(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - self.low) / (self.high - self.low)


def _class(kind: str) -> str:
    return kind.replace(" ", "-")


def _mark(kind: str, x: float, y: float) -> str:
    """Return the mark of a kind; the kinds differ in form as well as in colour."""
    name = _class(kind)
    if kind == "failed":
        return f'<path class="mark {name}" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>'
    if kind == "inconclusive":
        return f'<path class="mark {name}" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
    return f'<circle class="mark {name}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def _width(point: Point) -> float:
    return LETTER * len(point.name)


def _labels(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return left end and base line of each label: the nearest place where it covers no mark and no other label."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    found: list[tuple[float, float]] = []
    for point, (x, y) in zip(points, places, strict=True):
        width = _width(point)
        tries = [(x + 10, y + 4), (x - 10 - width, y + 4)]
        for away in range(1, 14):
            for base in (y + 4 - LINE * away, y + 4 + LINE * away):
                tries += [(x + 8, base), (x - 8 - width, base), (x - width / 2, base)]
        boxes = [(left, base - 11, left + width, base + 3) for left, base in tries]
        costs = [_cost(box, taken) + 0.01 * n for n, box in enumerate(boxes)]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        found.append(tries[best])
    return found


def _cost(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> float:
    outside = max(LEFT - box[0], 0) + max(box[2] - WIDTH + 2, 0) + max(TOP - box[1], 0)
    outside += max(box[3] - HEIGHT + BOTTOM, 0)
    shared = sum(
        max(min(box[2], other[2]) - max(box[0], other[0]), 0) * max(min(box[3], other[3]) - max(box[1], other[1]), 0)
        for other in taken
    )
    return outside + shared
