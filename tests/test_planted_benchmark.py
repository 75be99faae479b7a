"""What the benchmark of planted holes says of its runs, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.planted_page import DOCS, Point, Run, fill_docs, over_seeds, runs_of, write_page

# Gold rises by 0.2 up to step 4; of that gain more than a tenth is gone at step 6.
GOLD = {0: (0.6, 0.0), 2: (0.7, 0.0), 4: (0.8, 0.0), 6: (0.75, 0.25), 8: (0.65, 0.75)}
POINTS = tuple(Point(step, gold, score=step / 8, kl=step / 2, lost=lost) for step, (gold, lost) in GOLD.items())
EARLY = Run("length", 0, POINTS, {"style": 0, "length": 4, "gold_fell": 8, "collapse": 8})
LATE = Run("length", 1, POINTS, {"verbosity": 8})
CLEAN = Run("none", 0, POINTS[:3], {})
RUNS = [CLEAN, EARLY, LATE]


def test_a_run_is_right_where_a_rule_for_its_hole_fired_before_a_tenth_was_lost() -> None:
    assert (EARLY.seen_at, EARLY.seen_in_answers_at, EARLY.lost_at, EARLY.is_right) == (0, 4, 6, True)
    assert (LATE.seen_at, LATE.seen_in_answers_at, LATE.lost_at, LATE.is_right) == (8, 8, 6, False)
    assert (CLEAN.lost_at, CLEAN.is_right) == (None, True)


def test_seeds_are_summed_up_by_hole() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in over_seeds(RUNS)[2:]]
    assert rows[0] == ["none", "1 of 1", "-", "-", "-", "0.000"]
    # Of five alarms four are there for length or told of gold that fell: collapse is not.
    assert rows[1] == ["length", "1 of 2", "-2.0 (-6, 2)", "0.0 (-2, 2)", "0.80 (4 of 5)", "0.150"]


def test_the_page_the_plots_and_the_docs_are_made_of_the_record_alone(tmp_path: Path) -> None:
    machine = {"cores": 2, "processor": "p", "memory_gib": 1.0, "gpu": "none"}
    made = {"name": "planted", "command": "python x", "note": "A note.", "machine": machine, "versions": "v"}
    record = json.loads(json.dumps({**made, "runs": [asdict(run) for run in RUNS]}))
    assert runs_of(record)[1].fired == EARLY.fired
    write_page(record, runs_of(record), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["planted.json", "planted.md", "planted.png", "planted_length.png", "planted_none.png"]
    page = tmp_path / "reward_hacking.md"
    page.write_text(DOCS.read_text())
    for _ in range(2):
        fill_docs(record, runs_of(record), page)
        assert page.read_text().count("](../benchmarks/results/planted_length.png)") == 1
    assert "`style` at 0, `length` at 4, `gold_fell` at 8, `collapse` at 8, `verbosity` at 8." in page.read_text()
