"""Rows and tables: paired differences, directions, and files without NaN."""

from __future__ import annotations

import math

from rich.console import Console

from rlhf_ray.metrics.statistics import Interval
from rlhf_ray.suites.results import Row, markdown_table, measure_rows, results_table

VALUES = {
    "sft": {f"p{n}": float(n % 2) for n in range(40)},
    "ppo": {f"p{n}": 1.0 for n in range(30)},
}


def test_a_difference_is_over_the_prompts_that_both_have_answered() -> None:
    base, treated = measure_rows("s", "suite/accuracy", VALUES, "sft")
    assert base.difference is None
    assert (base.interval.value, treated.interval.value) == (0.5, 1.0)
    assert treated.difference is not None
    assert (treated.difference.value, treated.difference.count) == (0.5, 30)


def test_better_follows_the_direction_of_the_measure() -> None:
    up = Interval(0.2, 0.1, 0.3, 9)
    assert Row("s", "m", "suite/accuracy", up, up).verdict == "better"
    assert Row("s", "m", "suite/harmless_refused", up, up).verdict == "worse"
    assert Row("s", "m", "suite/words", up, up).verdict == "other"
    assert Row("s", "m", "suite/accuracy", up, Interval(0.2, -0.1, 0.3, 9)).verdict == ""


def test_tables_show_every_model_and_mark_what_differs() -> None:
    rows = measure_rows("sums", "suite/accuracy", VALUES, "sft")
    rows.append(Row("sums", "ppo", "pass_at/4", Interval(0.25, math.nan, math.nan, 1)))
    text = markdown_table(rows, ["sft", "ppo"], "sft")
    assert "| sums | accuracy | 0.500 [0.352, 0.648] | 1.000 [0.886, 1.000] ▲; +0.500 |" in text
    assert "| sums | pass@4 | n/a | 0.250 (n = 1) |" in text
    console = Console(width=120, record=True, file=None, quiet=True)
    console.print(results_table(rows, ["sft", "ppo"], "sft"))


def test_a_row_for_a_file_has_no_nan() -> None:
    row = Row("s", "m", "suite/words", Interval(3.0, math.nan, math.nan, 1)).as_dict()
    assert (row["value"], row["low"], row["count"], row["unit"]) == (3.0, None, 1, "words")
