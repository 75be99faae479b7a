"""Lines as SVG: where they run, where the axes have their marks. Plain numbers, for a template to write.

Coordinates are in the units of the picture, WIDTH by HEIGHT, from the upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_ray.metrics.sinks import format_number

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 26
MAX_POINTS = 300  # of a line: no screen shows more
MAX_DOTS = 60

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Limit:
    """An end of the healthy range that lies in the picture."""

    at: float
    label: str


@dataclass(frozen=True)
class DrawnLine:
    """``path`` is the ``d`` of an SVG path, ``dots`` are where the value was outside its healthy range."""

    colour: int
    path: str
    dots: tuple[Point, ...]
    points: str  # "x,y,value" joined by spaces, for the pointer's reading


@dataclass(frozen=True)
class Drawing:
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limits: tuple[Limit, ...]


def draw(
    lines: Sequence[tuple[int, Sequence[Point]]], low: float = -math.inf, high: float = math.inf
) -> Drawing | None:
    """Draw lines, each a colour and its (x, y); None where no y is a number. ``low`` to ``high`` is healthy.

    A y that is no number ends a line, which begins again behind it.
    """
    finite = [(x, y) for _, points in lines for x, y in points if math.isfinite(y)]
    if not finite:
        return None
    x_low, x_high = _span([x for x, _ in finite])
    y_low, y_high = _span([y for _, y in finite])
    margin = (y_high - y_low) / 2
    shown = [limit for limit in (low, high) if y_low - margin <= limit <= y_high + margin]
    y_low, y_high = min([y_low, *shown]), max([y_high, *shown])
    pad = 0.04 * (y_high - y_low)
    y_low, y_high = y_low - pad, y_high + pad
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> Point:
        right = LEFT + across * (x - x_low) / (x_high - x_low)
        return round(right, 1), round(TOP + down * (y_high - y) / (y_high - y_low), 1)

    drawn = []
    for colour, points in lines:
        kept = thinned(points)
        outside = [place(x, y) for x, y in kept if math.isfinite(y) and not low <= y <= high]
        readings = [(*place(x, y), x, y) for x, y in kept if math.isfinite(y)]
        said = " ".join(f"{px},{py},{x:g},{format_number(y).replace(',', '')}" for px, py, x, y in readings)
        drawn.append(
            DrawnLine(
                colour, _path([(x, y) for x, y in kept], place), tuple(outside[:: 1 + len(outside) // MAX_DOTS]), said
            )
        )
    return Drawing(
        tuple(drawn),
        tuple(Tick(place(x, y_low)[0], _label(x)) for x in ticks(x_low, x_high, 5)),
        tuple(Tick(place(x_low, y)[1], _label(y)) for y in ticks(y_low, y_high, 4)),
        tuple(Limit(place(x_low, limit)[1], f"{limit:g}") for limit in shown),
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _path(points: Sequence[Point], place: Callable[[float, float], Point]) -> str:
    parts, pen_is_up = [], True
    for x, y in points:
        if not math.isfinite(y):
            pen_is_up = True
            continue
        right, down = place(x, y)
        parts.append(f"{'M' if pen_is_up else 'L'}{right:g} {down:g}")
        pen_is_up = False
    return "".join(parts)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points, and never without the highest and the lowest of a stretch: a spike stays a spike."""
    if len(points) <= MAX_POINTS:
        return list(points)
    stretches = MAX_POINTS // 2
    kept: list[Point] = []
    for number in range(stretches):
        own = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        finite = [index for index, (_, y) in enumerate(own) if math.isfinite(y)]
        if not finite:
            kept.append(own[0])
            continue
        ends = {min(finite, key=lambda i: own[i][1]), max(finite, key=lambda i: own[i][1])}
        kept += [own[index] for index in sorted(ends)]
    return kept


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float) -> str:
    if abs(value) >= 1e5:
        return f"{value:.3g}"
    return f"{value:.6g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"
