"""Answers side by side, preferences, lineage, timeline: what they say of a made-up run, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rlhf_ray.metrics.evaluation import write_graded
from rlhf_ray.metrics.preferences import OPINIONS_FILE
from rlhf_ray.pipeline.phases import PhaseTrace
from rlhf_ray.viewing import answers, lineage, preferences, timeline
from rlhf_ray.viewing.overview import overview
from rlhf_ray.viewing.preferences import Asked
from rlhf_ray.viewing.run import Run, open_runs
from tests.viewing.made_up import HOSTILE, MadeUp, graded, made_up_run


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    return made_up_run(tmp_path / "run")


@pytest.fixture
def run(made: MadeUp) -> Run:
    return open_runs([made.root])[0]


# ------------------------------------------------------------------------------------------------------------- answers
def test_models_of_all_runs_and_rounds_may_be_compared(made: MadeUp, tmp_path: Path) -> None:
    other = made_up_run(tmp_path / "other")
    (made.root / "round_1" / "evaluation").mkdir(parents=True)
    write_graded(made.root / "round_1" / "evaluation" / "ppo.jsonl", [graded(0, "x", 1.0)])
    assert [model.label for model in answers.models(open_runs([made.root, other.root]))] == [
        "run · sft",
        "run · ppo",
        "run · round 1 · ppo",
        "other · sft",
        "other · ppo",
    ]


def test_answers_are_paired_by_prompt_and_sorted_by_what_was_gained(run: Run) -> None:
    sft, ppo = answers.models([run])
    both = answers.side_by_side(sft, ppo)
    # Gold is 0.2, 0.3, 0.4, 0.5, 0.6 before and 0.9, 0.8, 0.7, 0.6, 0.5 after.
    assert [row.gain for row in both.rows] == pytest.approx([0.7, 0.5, 0.3, 0.1, -0.1])
    assert (both.wins, both.ties, both.losses, both.count) == (4, 0, 1, 5)
    gold = next(row for row in both.measured if row.label == "Gold grade")
    assert gold.change == "+0.300"
    assert answers.side_by_side(sft, ppo, sort="loss").rows[0].gain == pytest.approx(-0.1)
    assert answers.side_by_side(sft, ppo, text="AFTER 3").count == 1
    assert answers.side_by_side(sft, ppo, kind="open").count == 0


def test_several_answers_to_a_prompt_are_paired_in_order() -> None:
    left = [graded(0, "a", 0.0), graded(0, "b", 0.0), graded(1, "c", 0.0)]
    right = [graded(0, "A", 1.0), graded(0, "B", 1.0), graded(2, "C", 1.0)]
    rows = answers.paired(left, right)
    assert [(row.left.response_text, row.right.response_text) for row in rows] == [("a", "A"), ("b", "B")]


def test_a_damaged_file_of_answers_is_told(run: Run) -> None:
    sft, ppo = answers.models([run])
    ppo.path.write_text("{}\n")
    assert "ppo.jsonl:1 is not a graded response" in answers.side_by_side(sft, ppo).problem


# --------------------------------------------------------------------------------------------------------- preferences
def test_the_reward_model_s_opinion_stands_beside_the_annotator_s(run: Run) -> None:
    assert preferences.places(run) == ["comparison"]
    found = preferences.judged_page(run, Asked("comparison"))
    # Ranking 0 is scored 2, 1, 0: as people did. Ranking 1 was not asked about, ranking 2 is the other way round.
    assert [(row.agreed, row.decided) for row in found.rows] == [(3.0, 3), (None, 3), (0.0, 3)]
    assert [(r.text, r.rank, r.score) for r in found.rows[2].responses] == [
        ("good", 1, 0.0),
        (HOSTILE, 2, 1.0),
        ("bad", 3, 2.0),
    ]
    assert [row.prompt_id for row in preferences.judged_page(run, Asked("comparison", only="disagreed")).rows] == ["p2"]
    assert [row.prompt_id for row in preferences.judged_page(run, Asked("comparison", only="agreed")).rows] == ["p0"]
    train = preferences.judged_page(run, Asked("comparison", "train", kind="open"))
    assert ([row.prompt_id for row in train.rows], train.has_opinions) == (["p1"], False)


def test_ties_give_no_pair_and_equal_scores_half_of_one() -> None:
    row = {"messages": [{"content": "q"}], "responses": ["a", "b", "c"], "ranks": [5, 2, 5]}
    judged = preferences.judged(row, [1.0, 1.0, 0.0])
    assert [(response.text, response.rank) for response in judged.responses] == [("b", 1), ("a", 2), ("c", 2)]
    assert (judged.decided, judged.agreed) == (2, 1.5)


def test_how_sure_the_reward_model_is_follows_from_the_difference() -> None:
    assert preferences.chance(1.0, 0.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preferences.chance(-1000.0, 1000.0) == pytest.approx(0.0)


def test_a_damaged_ranking_is_told_with_its_line(made: MadeUp, run: Run) -> None:
    (made.root / "comparison" / "rankings_train.jsonl").write_text('{"ranks": [1]}\n')
    train = preferences.judged_page(run, Asked("comparison", "train"))
    assert "rankings_train.jsonl:1 cannot be understood (KeyError: 'responses')" in train.problem
    (made.root / "reward_model" / OPINIONS_FILE).write_text('{"ranking": 0}\n')
    heldout = preferences.judged_page(run, Asked("comparison"))
    assert f"{OPINIONS_FILE}:1 cannot be understood (KeyError: 'scores')" in heldout.problem


# ------------------------------------------------------------------------------------------------------------- lineage
def test_a_stage_of_other_settings_would_be_done_again_and_so_would_what_follows(made: MadeUp, run: Run) -> None:
    assert [(node.record.place, node.depth, node.why) for node in lineage.nodes(run)] == [
        ("model", 0, ()),
        ("sft", 1, ()),
    ]
    made.finish("sft", ["model"], seed=0, sft={"num_epochs": 77.0, "without effect now": 1})
    made.finish("reward_model", ["sft"], seed=0)
    _, sft, reward_model = lineage.nodes(run)
    assert f"sft.num_epochs: 77.0 -> {made.config.sft.num_epochs}" in sft.why
    assert (reward_model.why, reward_model.depth) == (("sft would be done again",), 2)


def test_a_stage_made_from_another_parent_says_so(made: MadeUp, run: Run) -> None:
    path = made.root / "model" / "artefact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "new"}))
    assert lineage.nodes(run)[1].why == ("another model",)
    assert lineage.nodes(run)[1].parents[0].place == ""


def test_a_round_s_stages_are_made_from_those_of_the_run_and_of_the_round(made: MadeUp, run: Run) -> None:
    made.finish("round_1/comparison", ["sft"])
    path = made.root / "round_1" / "comparison" / "artefact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "key-of-comparison"}))
    made.finish("round_1/ppo", ["sft", "comparison"])
    ppo = lineage.nodes(run)[-1]
    assert [(parent.place, parent.is_here) for parent in ppo.parents] == [("sft", True), ("round_1/comparison", True)]
    assert (ppo.why, ppo.depth) == ((), 3)


def test_runs_differ_by_their_settings(made: MadeUp, tmp_path: Path) -> None:
    runs = open_runs([made.root, made_up_run(tmp_path / "other", seed=7).root])
    assert [str(change) for change in lineage.config_changes(*runs)] == ["seed: 0 -> 7"]
    assert [node.elsewhere for node in lineage.nodes(*runs)] == ["the same", "the same"]  # by their made-up keys


# ------------------------------------------------------------------------------------------------------------ timeline
def test_phases_are_drawn_by_who_worked(made: MadeUp, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 6.0, 7.0, 9.0, 10.0, 100.0, 100.0, 101.0])
    monkeypatch.setattr("rlhf_ray.pipeline.phases.time.time", lambda: next(clock))
    (made.ppo / "phases.jsonl").unlink()
    trace = PhaseTrace(made.ppo)
    for step, phase in ((1, "generate"), (1, "score"), (1, "update"), (1, "sync"), (2, "generate")):
        trace.begin(step, phase)
    trace.begin(2, "start")  # killed, and gone on with: the time between is nobody's work
    trace.begin(2, "generate")
    trace.begin(2, "score")
    drawn = timeline.gantt(run, "ppo")
    assert drawn is not None
    assert [span.said for span in drawn.spans] == [
        "step 1: generate, 6.00 s",
        "step 1: score, 1.00 s",
        "step 1: update, 2.00 s",
        "step 1: sync, 1.00 s",
        "step 2: generate, 1.00 s",
    ]
    assert [span.y for span in drawn.spans] == [4, 30, 56, 82, 4]
    only = timeline.gantt(run, "ppo", first=2)
    assert only is not None
    assert [(span.x, span.width) for span in only.spans] == [(110.0, 890.0)]


def test_a_step_s_time_is_shared_out(run: Run) -> None:
    assert [(each.phase, each.seconds, each.share) for each in timeline.shares(run, "ppo")] == [
        ("update", 3.0, 0.75),
        ("other", 1.0, 0.25),
    ]


# ------------------------------------------------------------------------------------------------------------ overview
def test_what_came_of_rounds_is_told_by_measure(made: MadeUp, run: Run) -> None:
    gold = {"mean": 0.5, "low": 0.4, "high": 0.6}
    models = {"sft": {"gold": gold, "score": gold}, "round_1": {"gold": gold, "score": gold}}
    (made.root / "rounds.json").write_text(json.dumps({"models": models}))
    found = overview(run, [run]).outcome
    assert found.columns == (("run", "sft"), ("run", "round_1"))
    assert found.rows[0].cells == (("0.500", "0.400 to 0.600"),) * 2


def test_the_overview_has_what_stands_out_and_what_came_of_it(made: MadeUp, tmp_path: Path) -> None:
    other = made_up_run(tmp_path / "other")
    measures = {
        "gold": {"sft": {"mean": 0.5, "low": 0.4, "high": 0.6}},
        "score": {"sft": {"mean": 1.0, "low": 0.9, "high": 1.1}},
    }
    (other.root / "summary.json").write_text(
        json.dumps({**measures, "seconds": {"sft": 1.0}, "by_kind": {"fact": {"gold": {"sft": 1}}}})
    )
    runs = open_runs([made.root, other.root])
    seen = overview(runs[0], runs)
    assert [curve.name for curve in seen.outside] == ["ppo/kl_per_token"]
    assert (seen.status.state, seen.num_alarms) == ("alive", 1)
    assert seen.outcome.columns == (("other", "sft"),)
    assert [(row.label, row.cells) for row in seen.outcome.rows] == [
        ("Gold grade", (("0.500", "0.400 to 0.600"),)),
        ("Score (proxy)", (("1.000", "0.900 to 1.100"),)),
    ]
