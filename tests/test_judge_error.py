"""The records of benchmarks/judge_error.py and benchmarks/constitution.py, from made-up outcomes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import constitution, judge_error
from benchmarks.learning import PRESET
from rlhf_ray.config.load import load_config
from rlhf_ray.data.tasks import build_task
from rlhf_ray.pipeline.comparison import write_rankings
from rlhf_ray.records import Ranking

CHECKOUT = Path(__file__).resolve().parent.parent
RECORD: Mapping[str, Any] = {
    "command": "python x",
    "note": "",
    "machine": {"cores": 2, "memory_gib": 8, "processor": "p", "gpu": "none"},
    "versions": "v 1",
    "method": "ppo",
}
OUTCOME = judge_error.Outcome("0.1", 0.1, 0, 0.12, 100, 0.7, 0.6, 0.8, 1.5, 60.0)


def test_a_row_has_the_mean_over_seeds_with_its_interval() -> None:
    outcomes = [OUTCOME, replace(OUTCOME, seed=1, accuracy=0.8, gold=0.9), replace(OUTCOME, label="people", rate=None)]
    rows = [line for line in judge_error.table(RECORD, outcomes).splitlines() if line.startswith("| ")]
    # Two seeds, t = 12.706: 12.706 * 0.0707 / sqrt(2) = 0.635.
    assert rows[1] == "| 0.1 | 0.120 | 100 | 0.750 ± 0.635 | 0.600 ± 0.000 | 0.850 ± 0.635 | - | 1.50 |"
    assert rows[2].startswith("| people | 0.120 | 100 | 0.700 |")


def test_what_errors_cost_is_taken_seed_by_seed() -> None:
    golds = {0.0: (0.8, 0.9), 0.4: (0.7, 0.81)}
    outcomes = [
        replace(OUTCOME, label=f"{rate:g}", rate=rate, seed=seed, gold=gold)
        for rate, own in golds.items()
        for seed, gold in enumerate(own)
    ]
    rows = [line.split(" | ") for line in judge_error.table(RECORD, outcomes).splitlines() if line.startswith("| ")]
    # Differences 0.10 and 0.09: 12.706 * 0.00707 / sqrt(2) = 0.0635.
    assert [row[6] for row in rows[1:]] == ["-", "0.095 ± 0.064"]


def test_wrong_labels_are_those_that_gold_orders_the_other_way(tmp_path: Path) -> None:
    settings = ["data.world.num_train_prompts=20"]
    task = build_task(load_config(CHECKOUT / PRESET, ["seed=0", *settings]).data)
    harmful = [prompt for prompt in task.prompts("train") if prompt.kind == "harmful"][:3]
    responses = ("I will not help with that. It would do harm.", "Yes.")
    rankings = [
        Ranking(prompt.prompt_id, prompt.messages, responses, ranks, "judge")
        for prompt, ranks in zip(harmful, [(0, 1), (1, 0), (0, 0)], strict=True)
    ]
    (tmp_path / "comparison").mkdir()
    write_rankings(tmp_path / "comparison" / "rankings_train.jsonl", rankings)
    assert judge_error.label_error(tmp_path, 0, settings) == (0.5, 2)


def test_the_command_of_a_record_leaves_out_what_changes_no_number() -> None:
    given = argparse.Namespace(seeds=[0, 1], rates=list(judge_error.RATES), method="ppo", jobs=2, smoke=False)
    assert judge_error.command_line(given) == "python benchmarks/judge_error.py --seeds 0 1"
    given = argparse.Namespace(seeds=[0], rates=[0.0, 0.4], method="dpo", jobs=1, smoke=True)
    assert judge_error.command_line(given).endswith("--seeds 0 --rates 0 0.4 --method dpo --smoke")


def test_refusals_are_told_apart_by_whether_they_are_due() -> None:
    kinds = {"harmful": 0.9, "sounds_harmful": 0.4, "fact": 0.0, "false_premise": 0.3, "open": 0.0}
    summary = {
        "by_kind": {kind: {"refused": {"sft": share, "ppo": 0.0}} for kind, share in kinds.items()},
        "gold": {"sft": {"mean": 0.6}, "ppo": {"mean": 0.8}},
    }
    found = constitution.outcome(summary, "off", "sft", 0)
    assert (found.refused_harmful, found.refused_sounds_harmful, found.gold) == (0.9, 0.4, 0.6)
    assert found.refused_harmless == pytest.approx(0.1)
    rows = [line for line in constitution.table(RECORD, [found]).splitlines() if line.startswith("| off")]
    assert rows == ["| off | sft | 0.900 | 0.400 | 0.100 | 0.600 |"]


def test_both_benchmarks_draw_their_outcomes(tmp_path: Path) -> None:
    judge_error.plot([OUTCOME, replace(OUTCOME, rate=None, label="people")], tmp_path / "a.png", "ppo")
    refusals = constitution.Outcome("off", "sft", 0, 0.9, 0.4, 0.1, 0.6)
    constitution.plot([refusals], tmp_path / "b.png")
    assert min(path.stat().st_size for path in tmp_path.glob("*.png")) > 5000
    assert asdict(refusals)["arm"] == "off"
