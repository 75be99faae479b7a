from __future__ import annotations

import pytest

from rlhf_ray.metrics.plots import Plot, Series, draw_lines, format_seconds, moving_average, render_svg, shorten, spread


def test_a_moving_average_starts_with_fewer_values() -> None:
    assert moving_average([1.0, 2.0, 6.0, 4.0], 3) == [1.0, 1.5, 3.0, 4.0]
    assert moving_average([1.0, 2.0], 1) == [1.0, 2.0]


def test_labels_that_would_touch_are_moved_apart_about_their_middle() -> None:
    assert spread([1.0, 1.0], 0.5) == [0.75, 1.25]
    assert spread([0.0, 5.0], 0.5) == [0.0, 5.0]


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.50 s"), (61, "61.0 s"), (1260, "21.0 min"), (9000, "2.5 h")])
def test_durations_in_figures_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_label_is_one_short_line() -> None:
    assert shorten("false premise") == "false premise"
    assert shorten("a\nb") == "a b"
    assert shorten("x" * 30, 10) == "x" * 9 + "…"


def test_a_figure_takes_the_pages_colours_and_is_the_same_every_time() -> None:
    line = Series("train", "#6483a6", [1, 2, 3], [3.0, float("nan"), 1.0])
    plot = Plot("loss", "Loss", "", "step", "nats", draw_lines([line]))
    svg = render_svg(plot)
    assert svg.startswith('<svg role="img" aria-label="Loss"')
    assert "currentColor" in svg
    assert "var(--grid)" in svg
    assert "#01020" not in svg
    assert "http" not in svg
    assert ">train<" in svg
    assert svg == render_svg(plot)
