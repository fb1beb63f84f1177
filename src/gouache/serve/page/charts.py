"""The loss curve of a run as SVG: every value pale, the running mean strong, validations as dots."""

from __future__ import annotations

from collections.abc import Sequence

from gouache.serve.page.parts import plain

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 30
MOST_POINTS = 600
SMOOTHING = 0.9
Point = tuple[float, float]


def smooth(points: Sequence[Point]) -> list[Point]:
    """The exponential running mean, started without bias."""
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * y, SMOOTHING * weight + 1 - SMOOTHING
        out.append((x, mean / weight))
    return out


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS`, evenly; the last always stays."""
    step = -(-len(points) // MOST_POINTS) or 1
    return [*points[:-1:step], *points[-1:]]


def loss_chart(log: Sequence[dict[str, float]], words: tuple[str, str, str]) -> str:
    """The chart, or nothing before there are two points.

    Args:
        log: lines of a run.
        words: names of the mean, of the validations, and of the horizontal axis.
    """
    losses = [(line["images_seen"], line["loss"]) for line in log if "loss" in line]
    checks = [(line["images_seen"], line["validation/score"]) for line in log if "validation/score" in line]
    if len(losses) < 2:
        return ""
    means = thinned(smooth(losses))
    losses = thinned(losses)
    # The first values dwarf the rest: the axis ends at the 97th percentile.
    values = sorted(y for _, y in [*losses, *checks])
    low, high = values[0], values[int(0.97 * (len(values) - 1))]
    span = (high - low) or abs(high) or 1.0
    low, high, last = low - 0.05 * span, high + 0.08 * span, max(x for x, _ in [*losses, *checks])

    def place(point: Point) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(point[1], low), high)) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = [_rules(low, high), _feet(last, words[2])]
    for name, points in (("g-raw", losses), ("g-mean", means)):
        parts.append(f'<polyline class="{name}" points="{" ".join(place(point) for point in points)}"/>')
    for check in thinned(checks):
        x, y = place(check).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4"><title>{check[1]:.4g}</title></circle>')
    label = f"{words[0]}: {means[-1][1]:.4g}"
    legend = f'<p class="g-legend"><span><i></i>{plain(label)}</span>'
    if checks:
        legend += f'<span><i class="g-dot"></i>{plain(words[1])}: {checks[-1][1]:.4g}</span>'
    chart = f'<svg class="g-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{plain(label)}">'
    return f"{chart}{''.join(parts)}</svg>{legend}</p>"


def _rules(low: float, high: float) -> str:
    rows = []
    for i in range(5):
        y = TOP + (HEIGHT - TOP - BOTTOM) * i / 4
        value = high + (low - high) * i / 4
        rows.append(f'<line class="g-rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    return "".join(rows)


def _feet(last: float, unit: str) -> str:
    ends = ((LEFT, "start", "0"), (WIDTH - RIGHT, "end", f"{last:,.0f} {unit}"))
    return "".join(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{at}">{plain(text)}</text>' for x, at, text in ends)
