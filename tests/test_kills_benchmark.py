"""The killed job with its real parts, three times; and what the benchmark's comparison sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import kills
from tests.clusters import SHARED_MEMORY, wait_until_nothing_is_left


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    os.environ.get("RLHF_RAY_KILLS") != "1", reason="five minutes with the machine to itself: RLHF_RAY_KILLS=1 runs it"
)
def test_a_job_that_is_killed_while_it_generates_saves_and_syncs_has_the_numbers_of_one_that_is_not(
    tmp_path: Path,
) -> None:
    in_shared_memory = set(SHARED_MEMORY.iterdir())
    done, found = kills.killed_run(tmp_path, num_kills=3, num_steps=4, seed=3, phases=("generate", "save", "sync"))
    assert [kill.victim for kill in done] == ["job"] * 3
    assert found.metrics == ()
    assert found.rollouts == ()
    assert found.num_rows == 5  # step 0 is before
    assert found.num_rollout_files >= 4
    assert wait_until_nothing_is_left(in_shared_memory) == set()


def left(run: Path, rows: list[dict[str, float]], rollouts: dict[str, str]) -> Path:
    """What a run of these rows and files would have left."""
    (run / "ppo" / "rollouts").mkdir(parents=True)
    lines = [json.dumps({"logged_at": 1.0, **row}) for row in rows]
    (run / "ppo" / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    for name, content in rollouts.items():
        (run / "ppo" / "rollouts" / name).write_text(content)
    return run


WHOLE = [{"step": 1, "ppo/score_mean": 0.1, "time/step": 1.0}, {"step": 2, "ppo/score_mean": 0.3, "time/step": 2.0}]


def test_times_are_not_compared(tmp_path: Path) -> None:
    other = [{**row, "time/step": 9.0, "time/save": 1.0} for row in WHOLE]
    one, two = left(tmp_path / "one", WHOLE, {"a": "x"}), left(tmp_path / "two", other, {"a": "x"})
    assert kills.compare(one, two) == kills.Comparison((), (), num_rows=2, num_rollout_files=1)
    assert kills.compare(one, two).exact


def test_the_last_bit_a_row_that_is_missing_or_there_twice_and_another_rollout_are_seen(tmp_path: Path) -> None:
    one = left(tmp_path / "one", WHOLE, {"a": "x", "b": "y"})
    bit = [WHOLE[0], {**WHOLE[1], "ppo/score_mean": 0.1 + 0.2}]
    assert kills.compare(one, left(tmp_path / "bit", bit, {"a": "x", "b": "y"})).metrics == ("step 2: ppo/score_mean",)
    missing = kills.compare(one, left(tmp_path / "missing", WHOLE[:1], {"a": "x"}))
    assert (missing.metrics, missing.rollouts) == (("step 2: ppo/score_mean",), ("b",))
    twice = kills.compare(one, left(tmp_path / "twice", [*WHOLE, WHOLE[1]], {"a": "z", "b": "y"}))
    assert (twice.metrics, twice.rollouts) == (("step 2: ppo/score_mean again",), ("a",))
