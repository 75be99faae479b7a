"""Figures of a report. Each is drawn twice: as SVG, whose ink takes the page's text colour, and as PNG on white."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

SFT_COLOR = "#6483a6"
PPO_COLOR = "#e07a29"
REWARD_MODEL_COLOR = "#8f6cc0"
OTHER_COLORS = ("#3d9a8b", "#c25b78", "#b99a2e", "#5f7d4f", "#8d8d8d", "#9c6b4e", "#4f8fb5")
SVG_INK, SVG_FAINT = "#010203", "#010204"  # stand for currentColor, whole and faint, until the SVG is on the page
PNG_INK, PNG_FAINT = "#24292f", "#d5dade"

Axes = Any  # matplotlib's own hints are not relied on
Draw = Callable[[Axes, "Ink"], None]


@dataclass(frozen=True)
class Ink:
    """Colours of text and of grid lines; the data's colours are the same everywhere."""

    text: str
    faint: str


@dataclass(frozen=True)
class Plot:
    """One panel. ``caption`` says what the reader sees; ``draw`` puts it on the axes."""

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    draw: Draw
    height: float = 2.9  # inches, of 5 inches of width


@dataclass(frozen=True)
class Series:
    """A line over steps. With ``low`` and ``high`` the interval is shaded."""

    label: str
    color: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    has_markers: bool = False


# ------------------------------------------------------------------------------------------------------------ rendering
def render_svg(plot: Plot) -> str:
    """Return inline SVG without any address in it: transparent, its text in the page's colour and font.

    The title is left to the page, where it can wrap.
    """
    with mpl.rc_context({**_style(Ink(SVG_INK, SVG_FAINT)), "svg.hashsalt": plot.key}):
        buffer = io.StringIO()
        figure = _figure(plot, Ink(SVG_INK, SVG_FAINT))
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|width|height)="[^"]*"', "", svg, count=4)
    svg = svg.replace(SVG_FAINT, "var(--grid)").replace(SVG_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{plot.title}"', 1)


def write_png(plot: Plot, path: Path) -> None:
    """Write the panel on white, large enough for a slide."""
    with mpl.rc_context(_style(Ink(PNG_INK, PNG_FAINT))):
        figure = _figure(plot, Ink(PNG_INK, PNG_FAINT))
        figure.axes[0].set_title(plot.title)
        figure.savefig(path, format="png", dpi=200, facecolor="white")


def _style(ink: Ink) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": ink.text,
        "axes.labelcolor": ink.text,
        "axes.edgecolor": ink.faint,
        "axes.titlecolor": ink.text,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "grid.color": ink.faint,
        "grid.linewidth": 0.5,
        "xtick.color": ink.faint,
        "ytick.color": ink.faint,
        "xtick.labelcolor": ink.text,
        "ytick.labelcolor": ink.text,
        "lines.solid_capstyle": "round",
    }


def _figure(plot: Plot, ink: Ink) -> Figure:
    figure = Figure(figsize=(5.0, plot.height), layout="constrained")
    axes = figure.add_subplot()
    plot.draw(axes, ink)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    return figure


# ---------------------------------------------------------------------------------------------------------- line panels
def draw_lines(series: Sequence[Series], *, level: Series | None = None) -> Draw:
    """Return a panel of lines with their names at their ends; ``level`` is a dashed line to compare with.

    More than 40 noisy points are drawn faint, under their moving average over a twentieth of them.
    """

    def draw(axes: Axes, ink: Ink) -> None:
        ends = [_draw_series(axes, line) for line in series]
        if level is not None:
            axes.axhline(level.values[0], color=level.color, linewidth=1.4, linestyle=(0, (4, 2)))
            ends.append((level.values[0], level))
        _label_ends(axes, ends)
        axes.margins(x=0.02)

    return draw


def _draw_series(axes: Axes, line: Series) -> tuple[float, Series]:
    window = len(line.values) // 20 if len(line.values) > 40 and not line.has_markers else 1
    smooth = moving_average(line.values, window)
    if window > 1:
        axes.plot(line.steps, line.values, color=line.color, linewidth=0.8, alpha=0.3)
    if line.low:
        axes.fill_between(line.steps, line.low, line.high, color=line.color, alpha=0.18, linewidth=0)
    marker = "o" if line.has_markers or len(line.values) == 1 else ""
    axes.plot(line.steps, smooth, color=line.color, linewidth=1.9, marker=marker, markersize=4)
    return smooth[-1], line


def _label_ends(axes: Axes, ends: Sequence[tuple[float, Series]]) -> None:
    """Write each line's name right of its end, in its colour; names that would touch are moved apart."""
    low, high = axes.get_ylim()
    gap = 0.085 * (high - low)
    finite = sorted((end for end in ends if math.isfinite(end[0])), key=lambda end: end[0])
    heights = spread([value for value, _ in finite], gap)
    for (_, line), height in zip(finite, heights, strict=True):
        axes.annotate(
            line.label,
            (1.015, height),
            xycoords=("axes fraction", "data"),
            color=line.color,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending ``heights`` moved as little as needed, about their middle, to lie ``gap`` or more apart."""
    moved = list(heights)
    for _ in range(len(moved)):
        for index in range(1, len(moved)):
            overlap = gap - (moved[index] - moved[index - 1])
            if overlap > 1e-12:
                moved[index - 1] -= overlap / 2
                moved[index] += overlap / 2
    return moved


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and the ``window`` - 1 before it, fewer at the start."""
    return [sum(values[max(0, end - window) : end]) / (end - max(0, end - window)) for end in range(1, len(values) + 1)]


# --------------------------------------------------------------------------------------------------------- other panels
def draw_path(
    steps: Sequence[float], x: Sequence[float], y: Sequence[float], color: str, start: float | None = None
) -> Draw:
    """Return a panel in which a run walks through the plane, with the last step named, and the first.

    ``start`` is where SFT stands, at x = 0; it takes the place of the first step's name.
    """

    def draw(axes: Axes, ink: Ink) -> None:
        axes.plot(x, y, color=color, linewidth=1.3, alpha=0.6)
        sizes = [14 + 22 * index / max(1, len(x) - 1) for index in range(len(x))]
        axes.scatter(x, y, s=sizes, color=color, zorder=3)
        for index in {len(x) - 1} if start is not None else sorted({0, len(x) - 1}):
            axes.annotate(
                f"step {steps[index]:g}", (x[index], y[index]), (5, -11), textcoords="offset points", color=ink.text
            )
        if start is not None:
            axes.scatter([0], [start], s=34, color=SFT_COLOR, zorder=4)
            axes.annotate("SFT", (0, start), (9, -4), textcoords="offset points", color=SFT_COLOR, fontweight="bold")
        axes.margins(0.1, 0.16)

    return draw


@dataclass(frozen=True)
class Dumbbell:
    """One line of a comparison: the SFT model and the aligned one with their intervals."""

    label: str
    sft: tuple[float, float, float]  # value, low, high
    aligned: tuple[float, float, float]


def draw_dumbbells(rows: Sequence[Dumbbell], method: str) -> Draw:
    """Return a panel with one line a kind: where SFT stood, where ``method`` stands, and how sure that is."""

    def draw(axes: Axes, ink: Ink) -> None:
        for index, row in enumerate(rows):
            for offset, color, (value, low, high) in ((-0.15, SFT_COLOR, row.sft), (0.15, PPO_COLOR, row.aligned)):
                axes.plot([low, high], [index + offset] * 2, color=color, linewidth=2.2, alpha=0.45)
                axes.scatter([value], [index + offset], s=30, color=color, zorder=3)
        for color, name, value, y, drop in (
            (SFT_COLOR, "SFT", rows[0].sft[0], -0.15, 7),
            (PPO_COLOR, method, rows[0].aligned[0], 0.15, -16),
        ):
            axes.annotate(
                name, (value, y), (0, drop), textcoords="offset points", ha="center", color=color, fontweight="bold"
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.grid(axis="y", visible=False)

    return draw


def draw_waterfall(parts: Mapping[str, float], colors: Mapping[str, str]) -> Draw:
    """Return a panel of durations in seconds, each bar beginning where the one above it ended.

    ``colors`` are those of parts that have one, by their name in lower case.
    """

    def draw(axes: Axes, ink: Ink) -> None:
        total = sum(parts.values()) or 1.0
        left = 0.0
        for index, (name, seconds) in enumerate(parts.items()):
            color = colors.get(name.lower(), OTHER_COLORS[index % len(OTHER_COLORS)])
            axes.barh(index, seconds, left=left, height=0.62, color=color)
            x, side, text_color = left + seconds + 0.012 * total, "left", ink.text
            if x > 0.72 * total:
                x, side, text_color = left - 0.012 * total, "right", ink.text
            if side == "right" and left < 0.28 * total:
                x, text_color = left + seconds - 0.012 * total, "white"
            label = f"{format_seconds(seconds)} ({seconds / total:.0%})"
            axes.text(x, index, label, ha=side, va="center", color=text_color)
            left += seconds
        axes.set_yticks(range(len(parts)), [shorten(name) for name in parts])
        axes.set_ylim(len(parts) - 0.4, -0.6)
        axes.set_xlim(0, total)
        axes.grid(axis="y", visible=False)

    return draw


def shorten(label: str, length: int = 24) -> str:
    """Return ``label`` on one line and with ``length`` characters at most: beside an axis there is room for no more."""
    line = " ".join(label.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def format_seconds(seconds: float) -> str:
    """Return 0.42 s, 12.3 s or 41 min: what a label has room for."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def draw_calibration(predicted: Sequence[float], observed: Sequence[tuple[float, float, float]]) -> Draw:
    """Return a panel of predicted against observed shares with intervals, beside the diagonal."""

    def draw(axes: Axes, ink: Ink) -> None:
        axes.plot([0, 1], [0, 1], color=ink.faint, linewidth=1.4, linestyle=(0, (4, 2)))
        for x, (_, low, high) in zip(predicted, observed, strict=True):
            axes.plot([x, x], [low, high], color=REWARD_MODEL_COLOR, linewidth=1.5, alpha=0.7)
        axes.plot(predicted, [value for value, _, _ in observed], color=REWARD_MODEL_COLOR, marker="o", markersize=5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)

    return draw
