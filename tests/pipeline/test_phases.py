"""phases.jsonl survives a kill in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_ray.pipeline.phases import PHASES_FILE, PhaseTrace


def test_a_line_that_a_kill_left_half_is_dropped_by_the_next_life(tmp_path: Path) -> None:
    trace = PhaseTrace(tmp_path)
    trace.begin(3, "generate")
    path = tmp_path / PHASES_FILE
    with path.open("a") as file:
        file.write('{"at": 1795753352.339, "step": 3, "phase": "score"')
    PhaseTrace(tmp_path).begin(2, "start")
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["phase"]) for line in written] == [(3, "generate"), (2, "start")]
